-- Move a worker's pending entries, but those it keeps, to the orphans lane; at most limit of them.
-- A dead worker leaves the set of workers when nothing of it is left.
-- KEYS workers, lanes, lane:orphans, draining
-- ARGV bell, worker, limit, who ('dead': only if its lease is over; 'self'), lane prefix, kept job ...
-- -> ALIVE | MORE, job, ... | OK, job, ...
local lease = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[2]) or 0)
if ARGV[4] == 'dead' and lease > now_ms() then return { 'ALIVE' } end
local kept = {}
for i = 6, #ARGV do kept[ARGV[i]] = true end

local moved, limit = { 'OK' }, tonumber(ARGV[3])

local function move(lane, entry)
  local body = redis.call('XRANGE', lane, entry, entry)[1]
  if body and kept[body[2][2]] then return end
  redis.call('XACK', lane, 'workers', entry)
  redis.call('XDEL', lane, entry)
  if not body then return end
  if redis.call('EXISTS', KEYS[3]) == 0 then
    redis.call('XGROUP', 'CREATE', KEYS[3], 'workers', '0', 'MKSTREAM')
    redis.call('SADD', KEYS[2], 'orphans')
  end
  redis.call('XADD', KEYS[3], '*', 'job', body[2][2])
  moved[#moved + 1] = body[2][2]
end

local function drain(lane, suffix)
  local pending = redis.call('XPENDING', lane, 'workers', '-', '+', limit + #ARGV, ARGV[2])
  for _, entry in ipairs(pending) do
    if #moved > limit then return false end
    move(lane, entry[1])
  end
  -- Removing a consumer makes what it still holds unclaimable, so look again first.
  if #redis.call('XPENDING', lane, 'workers', '-', '+', 1, ARGV[2]) == 0 then
    redis.call('XGROUP', 'DELCONSUMER', lane, 'workers', ARGV[2])
  elseif ARGV[4] == 'dead' then
    return false
  end
  if redis.call('XLEN', lane) == 0 then
    redis.call('DEL', lane)
    redis.call('SREM', KEYS[2], suffix)
  end
  return true
end

for _, suffix in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local lane = ARGV[5] .. suffix
  if redis.call('EXISTS', lane) == 0 then
    redis.call('SREM', KEYS[2], suffix)
  elseif not drain(lane, suffix) then
    moved[1] = 'MORE'
    break
  end
end
if ARGV[4] == 'dead' and moved[1] == 'OK' then
  redis.call('ZREM', KEYS[1], ARGV[2])
  redis.call('SREM', KEYS[4], ARGV[2])
end
if #moved > 1 then redis.call('PUBLISH', ARGV[1], '') end
return moved

-- Claim up to count jobs: orphans first, then those that wait for this worker, then high, normal,
-- low, one tenant after another in each; then those that wait for a worker that is dead, drains or is
-- too slow.
-- KEYS workers, affinity, draining, prefix:lane:orphans, then ring:high, ring:normal, ring:low
-- ARGV worker, count, lane prefix, how many other workers' lanes to look at, then the names of the
--      rings' priorities
-- -> LAPSED | OK, {suffix, entry, job}, ...
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return { 'LAPSED' } end
local claimed, wanted = { 'OK' }, tonumber(ARGV[2])

local function read(suffix, count)
  local lane = ARGV[3] .. suffix
  if redis.call('EXISTS', lane) == 0 then return 0 end
  local reply = redis.call('XREADGROUP', 'GROUP', 'workers', ARGV[1], 'COUNT', count,
    'STREAMS', lane, '>')
  if not reply then return 0 end
  for _, entry in ipairs(reply[1][2]) do
    claimed[#claimed + 1] = { suffix, entry[1], entry[2][2] } -- its first field is the job
  end
  return #reply[1][2]
end

local function read_ring(ring, priority)
  while wanted > 0 do
    local tenant = redis.call('ZRANGE', ring, 0, 0)[1]
    if not tenant then return end
    if read(priority .. ':' .. tenant, 1) == 0 then
      redis.call('ZREM', ring, tenant) -- nothing waits; enqueue puts the tenant back
    else
      wanted = wanted - 1
      local last = redis.call('ZRANGE', ring, -1, -1, 'WITHSCORES')
      redis.call('ZADD', ring, tonumber(last[2]) + 1, tenant)
    end
  end
end

-- Return the entry of the lane that is read next, if there is one.
local function peek(lane)
  if redis.call('EXISTS', lane) == 0 then return nil end
  local group = redis.call('XINFO', 'GROUPS', lane)[1]
  for i = 1, #group, 2 do
    if group[i] == 'last-delivered-id' then
      return redis.call('XRANGE', lane, '(' .. group[i + 1], '+', 'COUNT', 1)[1]
    end
  end
end

-- Read the lane of a worker. Its place in the affinity set is that of its next entry.
local function read_worker(worker, count)
  local suffix = 'worker:' .. worker
  wanted = wanted - read(suffix, count)
  local waiting = peek(ARGV[3] .. suffix)
  if waiting then
    local steal_at = waiting[2][4] -- job, its ID, steal_at, the time
    if redis.call('SISMEMBER', KEYS[3], worker) == 1 then steal_at = 0 end
    redis.call('ZADD', KEYS[2], steal_at, worker)
  else
    redis.call('ZREM', KEYS[2], worker)
  end
end

-- Return a worker whose next entry anybody may take.
local function find_late(now)
  local owners = redis.call('ZRANGE', KEYS[2], 0, tonumber(ARGV[4]) - 1, 'WITHSCORES')
  for i = 1, #owners, 2 do
    local lease = tonumber(redis.call('ZSCORE', KEYS[1], owners[i]) or 0)
    if tonumber(owners[i + 1]) <= now or lease <= now then return owners[i] end
  end
end

wanted = wanted - read('orphans', wanted)
if wanted > 0 and redis.call('ZSCORE', KEYS[2], ARGV[1]) then read_worker(ARGV[1], wanted) end
for i = 5, #KEYS do
  read_ring(KEYS[i], ARGV[i])
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
while wanted > 0 do
  local owner = find_late(now)
  if not owner then break end
  read_worker(owner, 1)
end
return claimed

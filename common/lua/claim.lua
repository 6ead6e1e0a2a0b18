-- Claim up to count jobs: orphans first, then high, normal, low; one tenant after another in each.
-- KEYS workers, prefix:lane:orphans, then ring:high, ring:normal, ring:low
-- ARGV worker, count, lane prefix, then the names of the rings' priorities
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
    claimed[#claimed + 1] = { suffix, entry[1], entry[2][2] }
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

wanted = wanted - read('orphans', wanted)
for i = 3, #KEYS do
  read_ring(KEYS[i], ARGV[i + 1])
end
return claimed

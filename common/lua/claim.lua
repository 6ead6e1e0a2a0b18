-- Claim up to count jobs: orphans first; then in turns those that wait for this worker, and those of
-- high, normal, low, one tenant after another in each; then those that wait for a worker that is dead,
-- drains or is too slow. A job of a lower priority goes first when it has waited ageing_ms longer for every step.
-- KEYS those of _tenants, then workers, affinity, draining, prefix:lane:orphans
-- ARGV worker, count, lane prefix, how many other workers' lanes to look at, ageing_ms
-- -> LAPSED | OK, {suffix, entry, job}, ...
local WORKERS, AFFINITY, DRAINING = 14, 15, 16
local CLOCK_MS = 3600000
local PRIORITIES = { 'high', 'normal', 'low' }
if not redis.call('ZSCORE', KEYS[WORKERS], ARGV[1]) then return { 'LAPSED' } end
local claimed, wanted, now = { 'OK' }, tonumber(ARGV[2]), now_ms()

local function read(suffix, count)
  local lane = ARGV[3] .. suffix
  if redis.call('EXISTS', lane) == 0 then return end
  local reply = redis.call('XREADGROUP', 'GROUP', 'workers', ARGV[1], 'COUNT', count,
    'STREAMS', lane, '>')
  if not reply then return end
  for _, entry in ipairs(reply[1][2]) do
    local job = entry[2][2] -- its first field is the job
    take_slot(job)
    claimed[#claimed + 1] = { suffix, entry[1], job }
    wanted = wanted - 1
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

-- Return the tenant whose turn it is, when that is, and since when its next job waits.
local function head(priority)
  local ring = RINGS[priority]
  while true do
    local found = redis.call('ZRANGE', KEYS[ring], 0, 0, 'WITHSCORES')
    local tenant, turn = found[1], tonumber(found[2])
    if not tenant then return nil end
    local entry = peek(ARGV[3] .. priority .. ':' .. tenant)
    if entry and has_free_slot(tenant) then
      return { priority = priority, tenant = tenant, turn = turn,
        since = tonumber(string.match(entry[1], '%d+')) }
    end
    redis.call('ZREM', KEYS[ring], tenant) -- enqueue, or a slot that becomes free, puts it back
    if entry then redis.call('SADD', KEYS[ring + 2], tenant) end
  end
end

local function next_head()
  local best, least
  for step, priority in ipairs(PRIORITIES) do
    local found = head(priority)
    local rank = found and step * tonumber(ARGV[5]) + found.since
    if found and (not best or rank < least) then best, least = found, rank end
  end
  return best
end

local function serve(found)
  local ring = RINGS[found.priority]
  read(found.priority .. ':' .. found.tenant, 1)
  local weight = of_tenant('weight', found.tenant)
  if weight == 0 then weight = 1 end
  redis.call('ZADD', KEYS[ring], found.turn + 1 / weight, found.tenant)
  redis.call('SET', KEYS[ring + 1], string.format('%.17g', found.turn), 'PX', CLOCK_MS)
end

-- Read the lane of a worker. Its place in the affinity set is that of its next entry.
local function read_worker(worker, count)
  local suffix = 'worker:' .. worker
  read(suffix, count)
  local waiting = peek(ARGV[3] .. suffix)
  if waiting then
    local steal_at = waiting[2][4] -- job, its ID, steal_at, the time
    if redis.call('SISMEMBER', KEYS[DRAINING], worker) == 1 then steal_at = 0 end
    redis.call('ZADD', KEYS[AFFINITY], steal_at, worker)
  else
    redis.call('ZREM', KEYS[AFFINITY], worker)
    redis.call('HDEL', KEYS[4], 'own:' .. worker)
  end
end

-- The jobs that wait for this worker and those of the rings take turns, one by one: 'own:WORKER' of
-- the tenants says that the rings have the next one.
local function serve_own_or_ring()
  local field = 'own:' .. ARGV[1]
  local own, found = redis.call('ZSCORE', KEYS[AFFINITY], ARGV[1]), next_head()
  if own and not (found and redis.call('HGET', KEYS[4], field)) then
    redis.call('HSET', KEYS[4], field, 1)
    read_worker(ARGV[1], 1)
  elseif found then
    redis.call('HDEL', KEYS[4], field)
    serve(found)
  end
  return own or found
end

-- Return a worker whose next entry anybody may take.
local function find_late()
  local owners = redis.call('ZRANGE', KEYS[AFFINITY], 0, tonumber(ARGV[4]) - 1, 'WITHSCORES')
  for i = 1, #owners, 2 do
    local lease = tonumber(redis.call('ZSCORE', KEYS[WORKERS], owners[i]) or 0)
    if tonumber(owners[i + 1]) <= now or lease <= now then return owners[i] end
  end
end

read('orphans', wanted)
while wanted > 0 do
  if not serve_own_or_ring() then break end
end
while wanted > 0 do
  local owner = find_late()
  if not owner then break end
  read_worker(owner, 1)
end
return claimed

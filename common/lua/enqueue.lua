-- Put a job into a lane, once: that of the worker that holds its prompt's KV cache, where that lives,
-- does not drain and is worth a wait; else its tenant's.
-- KEYS those of _tenants, then lanes, workers, affinity, draining
-- ARGV bell, job, deadline_ms, priority, tenant, lane prefix, weight ('' leaves the tenant's share as
--      it is), max_running
-- and where the job has a prompt ID: KEYS prompt, ARGV longest patience_ms
-- -> OK | KNOWN
local LANES, WORKERS, AFFINITY, DRAINING, PROMPT = 14, 15, 16, 17, 18
local MOST_FOR_ONE_WORKER = 64
local job, priority, tenant = ARGV[2], ARGV[4], ARGV[5]
if redis.call('ZADD', KEYS[1], 'NX', ARGV[3], job) == 0 then return 'KNOWN' end
if redis.call('HSETNX', KEYS[2], job, tenant) == 1 then
  redis.call('HINCRBY', KEYS[4], 'jobs:' .. tenant, 1)
end
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[4], 'weight:' .. tenant, ARGV[7], 'max_running:' .. tenant, ARGV[8])
end

local function add(suffix, ...)
  local lane = ARGV[6] .. suffix
  if redis.call('EXISTS', lane) == 0 then
    redis.call('XGROUP', 'CREATE', lane, 'workers', '0', 'MKSTREAM')
    redis.call('SADD', KEYS[LANES], suffix)
  end
  redis.call('XADD', lane, '*', 'job', job, ...)
end

local function holder(now)
  if not KEYS[PROMPT] then return nil end
  local prompt = redis.call('HMGET', KEYS[PROMPT], 'worker', 'recompute_ms', 'ttl_ms')
  if not prompt[1] then return nil end
  redis.call('PEXPIRE', KEYS[PROMPT], prompt[3]) -- it must outlast the job's wait
  if redis.call('SISMEMBER', KEYS[DRAINING], prompt[1]) == 1 then return nil end
  local lease = redis.call('ZSCORE', KEYS[WORKERS], prompt[1])
  local patience = math.min(tonumber(ARGV[9]), tonumber(prompt[2]))
  if patience <= 0 or not lease or tonumber(lease) <= now then return nil end
  if not has_free_slot(tenant) then return nil end
  -- Those in this lane take no turns and are counted as running: so they are few.
  if redis.call('XLEN', ARGV[6] .. 'worker:' .. prompt[1]) >= MOST_FOR_ONE_WORKER then return nil end
  return prompt[1], math.floor(now + patience)
end

local worker, steal_at = holder(now_ms())
if worker then
  take_slot(job) -- a worker's lane knows no tenants, so the slot is taken before it
  add('worker:' .. worker, 'steal_at', steal_at)
  redis.call('ZADD', KEYS[AFFINITY], 'NX', steal_at, worker)
else
  add(priority .. ':' .. tenant)
  join_ring(RINGS[priority], tenant)
end
redis.call('PUBLISH', ARGV[1], '')
return 'OK'

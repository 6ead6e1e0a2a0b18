-- Put a job into a lane, once: that of the worker that holds its prompt's KV cache, where that lives,
-- does not drain and is worth a wait; else its tenant's.
-- KEYS jobs, lanes, lane, ring, workers, affinity, draining
-- ARGV bell, job, deadline_ms, lane suffix, tenant, lane prefix
-- and where the job has a prompt ID: KEYS prompt, ARGV longest patience_ms
-- -> OK | KNOWN
if redis.call('ZADD', KEYS[1], 'NX', ARGV[3], ARGV[2]) == 0 then return 'KNOWN' end

local function add(suffix, ...)
  local lane = ARGV[6] .. suffix
  if redis.call('EXISTS', lane) == 0 then
    redis.call('XGROUP', 'CREATE', lane, 'workers', '0', 'MKSTREAM')
    redis.call('SADD', KEYS[2], suffix)
  end
  redis.call('XADD', lane, '*', 'job', ARGV[2], ...)
end

local function holder(now)
  if not KEYS[8] then return nil end
  local prompt = redis.call('HMGET', KEYS[8], 'worker', 'recompute_ms', 'ttl_ms')
  if not prompt[1] then return nil end
  redis.call('PEXPIRE', KEYS[8], prompt[3]) -- it must outlast the job's wait
  if redis.call('SISMEMBER', KEYS[7], prompt[1]) == 1 then return nil end
  local lease = redis.call('ZSCORE', KEYS[5], prompt[1])
  local patience = math.min(tonumber(ARGV[7]), tonumber(prompt[2]))
  if patience <= 0 or not lease or tonumber(lease) <= now then return nil end
  return prompt[1], math.floor(now + patience)
end

local time = redis.call('TIME')
local worker, steal_at = holder(tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
if worker then
  add('worker:' .. worker, 'steal_at', steal_at)
  redis.call('ZADD', KEYS[6], 'NX', steal_at, worker)
else
  add(ARGV[4])
  local last = redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')
  redis.call('ZADD', KEYS[4], 'NX', (tonumber(last[2]) or 0) + 1, ARGV[5])
end
redis.call('PUBLISH', ARGV[1], '')
return 'OK'

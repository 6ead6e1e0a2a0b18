-- A worker takes the job: the epoch (the fence) goes up, every older holder is shut out.
-- KEYS record, log
-- ARGV channel, worker, epoch, next (both as the worker read them), event, base, how long (ms) the job
--      may run from its first start ('' as long as its deadline lets it)
-- -> OK, epoch, queue_ms | STALE (read again) | CANCEL | EXPIRED | CLOSED | GONE
local job = redis.call('HMGET', KEYS[1], 'epoch', 'next', 'state', 'cancel', 'deadline_ms',
  'created_ms', 'incarnation', 'owner')
if not job[1] then return { 'GONE' } end
if job[3] ~= 'queued' and job[3] ~= 'running' then return { 'CLOSED' } end
if job[1] ~= ARGV[3] or job[2] ~= ARGV[4] then return { 'STALE' } end
local now = now_ms()
if job[4] then return { 'CANCEL' } end
if now >= tonumber(job[5]) then return { 'EXPIRED' } end
-- Still running under another one: that worker died and nobody had told the record yet.
if job[3] == 'running' and job[8] ~= ARGV[2] then redis.call('HINCRBY', KEYS[1], 'losses', 1) end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
-- Never below the clock: a server that lost a start must not grant the same epoch again.
local epoch = math.max(tonumber(job[1]) + 1, now)
local next = tonumber(job[2])
redis.call('HSET', KEYS[1], 'state', 'running', 'owner', ARGV[2], 'epoch', epoch,
  'next', next + 1)
-- The first start: later ones are no queueing, and give no more time to run.
if redis.call('HSETNX', KEYS[1], 'started_ms', now) == 1 and ARGV[7] ~= '' then
  redis.call('HSET', KEYS[1], 'deadline_ms', math.min(tonumber(job[5]), now + tonumber(ARGV[7])))
end
if ARGV[6] ~= '' then redis.call('HSETNX', KEYS[1], 'base', ARGV[6]) end
add_event(next, ARGV[5], job[7])
return { 'OK', epoch, redis.call('HGET', KEYS[1], 'started_ms') - tonumber(job[6]) }

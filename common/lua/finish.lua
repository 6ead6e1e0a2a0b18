-- Write the terminal event, the result and the state, once. The holder of the epoch ends its job
-- with this; anybody may end a job that nobody works on, with the epoch and next that it read.
-- KEYS record, log   ARGV channel, epoch, n, state, retention_ms, event
-- -> OK | GAP | STALE (log is longer) | FENCED | CLOSED | GONE, next
local job = redis.call('HMGET', KEYS[1], 'epoch', 'next', 'state', 'incarnation')
if not job[1] then return { 'GONE', 0 } end
local next, n = tonumber(job[2]), tonumber(ARGV[3])
if job[3] ~= 'queued' and job[3] ~= 'running' then return { 'CLOSED', next } end
if job[1] ~= ARGV[2] then return { 'FENCED', next } end
if n > next then return { 'GAP', next } end
if n < next then return { 'STALE', next } end
if job[3] == 'queued' and ARGV[4] == 'completed' then
  return redis.error_reply('ILLEGAL a queued job cannot move to completed')
end
redis.call('HSET', KEYS[1], 'state', ARGV[4], 'next', next + 1, 'finished_ms', now_ms(),
  'result', ARGV[6])
redis.call('HDEL', KEYS[1], 'base') -- it is never started again; in a long chat these would add up
add_event(next, ARGV[6], job[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return { 'OK', next + 1 }

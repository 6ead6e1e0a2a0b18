-- Create a job and its event 0, unless it exists.
-- KEYS record, log   ARGV channel, fingerprint, deadline_ms (from now), retention_ms, event,
--                         then field, value, ... of the record
-- -> CREATED | EXISTS, fingerprint, state, created_ms, deadline_ms
local job = redis.call('HMGET', KEYS[1], 'fingerprint', 'state', 'created_ms', 'deadline_ms')
if job[1] then
  return { 'EXISTS', job[1], job[2], job[3], job[4] }
end
local created_ms = now_ms()
local deadline_ms = created_ms + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[2], 'state', 'queued', 'epoch', 0, 'next', 1,
  'attempts', 0, 'losses', 0, 'created_ms', created_ms, 'deadline_ms', deadline_ms,
  unpack(ARGV, 6))
redis.call('DEL', KEYS[2])
redis.call('XADD', KEYS[2], '0-1', 'event', ARGV[5])
local lifetime_ms = tonumber(ARGV[3]) + tonumber(ARGV[4])
redis.call('PEXPIRE', KEYS[1], lifetime_ms)
redis.call('PEXPIRE', KEYS[2], lifetime_ms)
return { 'CREATED', ARGV[2], 'queued', tostring(created_ms), tostring(deadline_ms) }

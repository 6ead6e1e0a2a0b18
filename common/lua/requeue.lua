-- A job goes back to waiting, because its worker died or hands it over; the old holder is fenced.
-- KEYS record, log   ARGV channel, owner, lost (1 counts against the job, 0 does not), event
-- -> OK | STALE (another owner) | CLOSED | GONE
local job = redis.call('HMGET', KEYS[1], 'state', 'owner', 'next', 'incarnation')
if not job[1] then return { 'GONE' } end
if job[1] ~= 'running' then return { 'CLOSED' } end
if job[2] ~= ARGV[2] then return { 'STALE' } end
local next = tonumber(job[3])
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HINCRBY', KEYS[1], 'losses', ARGV[3])
redis.call('HSET', KEYS[1], 'state', 'queued', 'owner', '', 'next', next + 1)
add_event(next, ARGV[4], job[4])
return { 'OK' }

-- Ask for the end of a job. The flag is durable: whoever holds or takes the job sees it.
-- KEYS record   ARGV -
-- -> OK, state, owner | CLOSED, state, owner | GONE
local job = redis.call('HMGET', KEYS[1], 'state', 'owner')
if not job[1] then return { 'GONE', '', '' } end
local owner = job[2] or ''
if job[1] ~= 'queued' and job[1] ~= 'running' then return { 'CLOSED', job[1], owner } end
redis.call('HSET', KEYS[1], 'cancel', 1)
return { 'OK', job[1], owner }

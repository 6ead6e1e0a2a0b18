-- Append events n, n+1, ... under the epoch. What is already there is not written again.
-- KEYS record, log   ARGV channel, epoch, n, event, ...
-- -> OK | CANCEL | EXPIRED (written, but stop) | GAP | FENCED | CLOSED | GONE (not written), next
local job = redis.call('HMGET', KEYS[1], 'epoch', 'next', 'state', 'cancel', 'deadline_ms',
  'incarnation')
if not job[1] then return { 'GONE', 0 } end
local next, n = tonumber(job[2]), tonumber(ARGV[3])
if job[1] ~= ARGV[2] then return { 'FENCED', next } end
if job[3] ~= 'running' then return { 'CLOSED', next } end
if n > next then return { 'GAP', next } end
for i = 4 + next - n, #ARGV do
  add_event(next, ARGV[i], job[6])
  next = next + 1
end
redis.call('HSET', KEYS[1], 'next', next)
if job[4] then return { 'CANCEL', next } end
if now_ms() >= tonumber(job[5]) then return { 'EXPIRED', next } end
return { 'OK', next }

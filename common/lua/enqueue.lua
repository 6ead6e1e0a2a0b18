-- Put a job into its tenant's lane, once.
-- KEYS jobs, lanes, lane, ring   ARGV bell, job, deadline_ms, lane suffix, tenant
-- -> OK | KNOWN
if redis.call('ZADD', KEYS[1], 'NX', ARGV[3], ARGV[2]) == 0 then return 'KNOWN' end
if redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[3], 'workers', '0', 'MKSTREAM')
  redis.call('SADD', KEYS[2], ARGV[4])
end
redis.call('XADD', KEYS[3], '*', 'job', ARGV[2])
local last = redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')
redis.call('ZADD', KEYS[4], 'NX', (tonumber(last[2]) or 0) + 1, ARGV[5])
redis.call('PUBLISH', ARGV[1], '')
return 'OK'

-- A worker that drains is no holder any more: its prompts' next jobs go to their tenants' lanes, and
-- what waits for it is anybody's now.
-- KEYS workers, draining, affinity   ARGV bell, worker
if not redis.call('ZSCORE', KEYS[1], ARGV[2]) then return end -- nobody would remove it again
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[3], 'XX', 0, ARGV[2])
redis.call('PUBLISH', ARGV[1], '')

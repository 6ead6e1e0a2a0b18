-- Acknowledge and delete a lane entry, if this worker still owns it. An empty lane goes.
-- KEYS jobs, lanes, lane   ARGV worker, entry, job, lane suffix
-- -> OK | NOT_OWNER
if redis.call('EXISTS', KEYS[3]) == 0 then return 'NOT_OWNER' end
local pending = redis.call('XPENDING', KEYS[3], 'workers', ARGV[2], ARGV[2], 1, ARGV[1])
if #pending == 0 then return 'NOT_OWNER' end
redis.call('XACK', KEYS[3], 'workers', ARGV[2])
redis.call('XDEL', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[1], ARGV[3])
if redis.call('XLEN', KEYS[3]) == 0 then
  redis.call('DEL', KEYS[3])
  redis.call('SREM', KEYS[2], ARGV[4])
end
return 'OK'

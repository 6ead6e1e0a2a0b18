-- Acknowledge and delete a lane entry, if this worker still owns it. An empty lane goes. A letter
-- tells of a job that was given up; the entry is its ticket.
-- KEYS those of _tenants, then lanes, lane; with a letter also dead
-- ARGV worker, entry, job, lane suffix, bell; with a letter also its text, the most letters, ttl_ms
-- -> OK | NOT_OWNER
local LANES, LANE, DEAD = 14, 15, 16
if redis.call('EXISTS', KEYS[LANE]) == 0 then return 'NOT_OWNER' end
local pending = redis.call('XPENDING', KEYS[LANE], 'workers', ARGV[2], ARGV[2], 1, ARGV[1])
if #pending == 0 then return 'NOT_OWNER' end
redis.call('XACK', KEYS[LANE], 'workers', ARGV[2])
redis.call('XDEL', KEYS[LANE], ARGV[2])
if redis.call('XLEN', KEYS[LANE]) == 0 then
  redis.call('DEL', KEYS[LANE])
  redis.call('SREM', KEYS[LANES], ARGV[4])
end
if ARGV[6] then
  redis.call('XADD', KEYS[DEAD], 'MAXLEN', '~', ARGV[7], '*', 'letter', ARGV[6])
  redis.call('XTRIM', KEYS[DEAD], 'MINID', now_ms() - tonumber(ARGV[8]))
  redis.call('PEXPIRE', KEYS[DEAD], ARGV[8])
end
settle(ARGV[3], ARGV[5])
return 'OK'

-- Take (mode 'join') or renew (mode 'renew') a worker's lease, in Redis time. Once the sweep has
-- removed a worker, its old ID cannot come back.
-- KEYS workers   ARGV worker, lease_ms, mode
-- -> OK, deadline_ms | LAPSED
if ARGV[3] == 'renew' and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return { 'LAPSED', 0 } end
local deadline = now_ms() + tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], deadline, ARGV[1])
return { 'OK', deadline }

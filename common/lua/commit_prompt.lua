-- Store the sequence of an ended job under its prompt ID. A job makes one version, however often it
-- commits; an older attempt of that job changes nothing any more.
-- KEYS prompt   ARGV ttl_ms, job, epoch, then field, value, ... of the entry
-- -> version
local stored = redis.call('HMGET', KEYS[1], 'version', 'job', 'epoch')
local version = tonumber(stored[1]) or 0
local is_again = stored[2] == ARGV[2]
if not is_again or tonumber(ARGV[3]) >= tonumber(stored[3]) then
  if not is_again then version = version + 1 end
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'version', version, 'job', ARGV[2], 'epoch', ARGV[3],
    'ttl_ms', ARGV[1], 'updated_ms', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000),
    unpack(ARGV, 4))
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return version

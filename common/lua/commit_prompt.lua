-- Store the sequence of an ended job under its prompt ID. A job makes one version, however often it
-- commits; an older attempt of that job changes nothing any more, nor does a job before the last.
-- Of those it knows the last few, in the field 'earlier': "job version" on a line each.
-- KEYS prompt   ARGV ttl_ms, job, epoch, then field, value, ... of the entry
-- -> version
local NUM_EARLIER = 16
local stored = redis.call('HMGET', KEYS[1], 'version', 'job', 'epoch', 'earlier')
local version, earlier = tonumber(stored[1]) or 0, stored[4] or ''

local function commit()
  if stored[2] and stored[2] ~= ARGV[2] then
    earlier = earlier .. stored[2] .. ' ' .. version .. '\n'
    local _, count = string.gsub(earlier, '\n', '')
    if count > NUM_EARLIER then earlier = string.gsub(earlier, '^[^\n]*\n', '') end
  end
  if stored[2] ~= ARGV[2] then version = version + 1 end
  redis.call('HSET', KEYS[1], 'version', version, 'job', ARGV[2], 'epoch', ARGV[3],
    'earlier', earlier, 'ttl_ms', ARGV[1], 'updated_ms', now_ms(),
    unpack(ARGV, 4))
end

local made
for job, number in string.gmatch(earlier, '(%S+) (%d+)\n') do
  if job == ARGV[2] then made = tonumber(number) end
end
local is_fenced = stored[2] == ARGV[2] and tonumber(ARGV[3]) < tonumber(stored[3])
if not made and not is_fenced then commit() end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return made or version

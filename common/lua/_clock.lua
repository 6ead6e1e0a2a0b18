-- Shared by the scripts that need the time: that of Redis, which is the same for all hosts, in whole
-- milliseconds, as all stored times are.

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

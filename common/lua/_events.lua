-- Shared by the scripts that write events. They take KEYS record, log and ARGV[1] = the doorbell.

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The log first, then the doorbell; the incarnation tells a job from an older one of the same ID.
local function add_event(n, event, incarnation)
  redis.call('XADD', KEYS[2], '0-' .. (n + 1), 'event', event)
  redis.call('PUBLISH', ARGV[1], incarnation .. ':' .. n .. ':' .. event)
end

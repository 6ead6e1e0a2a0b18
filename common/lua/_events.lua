-- Shared by the scripts that write events. They take KEYS record, log and ARGV[1] = the doorbell.

-- The log first, then the doorbell; the incarnation tells a job from an older one of the same ID.
local function add_event(n, event, incarnation)
  redis.call('XADD', KEYS[2], '0-' .. (n + 1), 'event', event)
  redis.call('PUBLISH', ARGV[1], incarnation .. ':' .. n .. ':' .. event)
end

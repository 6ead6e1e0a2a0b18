-- Ask whether a tenant may have one more job, and take its tokens out of the tenant's bucket, which
-- holds a minute's and fills up evenly.
-- KEYS those of _tenants, then bucket
-- ARGV tenant, most waiting jobs of the model, of the tenant, tokens a minute, tokens of the job
--      (0 is no limit)
-- -> OK | MODEL_FULL | TENANT_FULL | TOO_FAST; jobs that may still wait, tokens left, ms until there
--    are enough tokens (TOO_FAST) or the bucket is full
local BUCKET, MINUTE_MS = 14, 60000
local tenant, max_queued, per_minute = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local cost = tonumber(ARGV[5])

if redis.call('ZCARD', KEYS[1]) - redis.call('SCARD', KEYS[3]) >= tonumber(ARGV[2]) then
  return { 'MODEL_FULL', 0, 0, 0 }
end
local waiting = of_tenant('jobs', tenant) - of_tenant('slots', tenant)
local room = max_queued - waiting
if max_queued > 0 and room < 1 then return { 'TENANT_FULL', 0, 0, 0 } end
if per_minute == 0 then return { 'OK', room - 1, 0, 0 } end

local now = now_ms()
local bucket = redis.call('HMGET', KEYS[BUCKET], 'tokens', 'at_ms')
local tokens, per_ms = tonumber(bucket[1]) or per_minute, per_minute / MINUTE_MS
tokens = math.min(per_minute, tokens + math.max(0, now - (tonumber(bucket[2]) or now)) * per_ms)
if tokens < cost then
  return { 'TOO_FAST', room, math.floor(tokens), math.ceil((cost - tokens) / per_ms) }
end
tokens = tokens - cost
redis.call('HSET', KEYS[BUCKET], 'tokens', string.format('%.17g', tokens), 'at_ms', now)
redis.call('PEXPIRE', KEYS[BUCKET], MINUTE_MS)
return { 'OK', room - 1, math.floor(tokens), math.ceil((per_minute - tokens) / per_ms) }

-- Shared by the scripts that let a model's jobs in, let them wait, run and end. They take KEYS 1 jobs,
-- 2 owners, 3 slots, 4 tenants, then ring, clock and full of high, of normal and of low.
--
-- 'owners' says whose an unfinished job is. A job has a slot from its first claim to its end;
-- 'tenants' counts every tenant's jobs and slots and keeps its share (fields 'jobs:T', 'slots:T',
-- 'weight:T', 'max_running:T'; 0 is no limit). Its field 'own:W' is of claim: worker W read its own lane
-- last, so the rings have its next turn. It goes when they had that, or nothing waits in the lane.
--
-- Tenants take turns by virtual time (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996).
-- Each waits in the ring with the time of its next turn; the least is served, and its next turn comes
-- 1 / weight later. 'clock' is the ring's own time, that of the last turn: who comes has its first
-- turn then. A tenant with nothing waiting leaves when its turn has come, not before: leaving is no way
-- past the others. Tenants with waiting jobs and all their slots in use are in 'full'; they too leave
-- the ring when their turn has come.
local RINGS = { high = 5, normal = 8, low = 11 }

local function of_tenant(what, tenant)
  return tonumber(redis.call('HGET', KEYS[4], what .. ':' .. tenant)) or 0
end

local function has_free_slot(tenant)
  local most = of_tenant('max_running', tenant)
  return most == 0 or of_tenant('slots', tenant) < most
end

-- A job that has ended meanwhile has no owner, and needs no slot.
local function take_slot(job)
  local tenant = redis.call('HGET', KEYS[2], job)
  if tenant and redis.call('SADD', KEYS[3], job) == 1 then
    redis.call('HINCRBY', KEYS[4], 'slots:' .. tenant, 1)
  end
end

local function join_ring(ring, tenant)
  if not has_free_slot(tenant) then
    redis.call('SADD', KEYS[ring + 2], tenant)
    return
  end
  redis.call('SREM', KEYS[ring + 2], tenant)
  local least = redis.call('ZRANGE', KEYS[ring], 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', KEYS[ring], 'NX', redis.call('GET', KEYS[ring + 1]) or least or 0, tenant)
end

-- The job is not unfinished any more; who waited for its slot waits for a turn now.
local function settle(job, bell)
  redis.call('ZREM', KEYS[1], job)
  local tenant = redis.call('HGET', KEYS[2], job)
  if not tenant then return end
  redis.call('HDEL', KEYS[2], job)
  if redis.call('SREM', KEYS[3], job) == 1 then
    redis.call('HINCRBY', KEYS[4], 'slots:' .. tenant, -1)
    for _, ring in pairs(RINGS) do
      if redis.call('SISMEMBER', KEYS[ring + 2], tenant) == 1 then
        join_ring(ring, tenant)
        redis.call('PUBLISH', bell, '')
      end
    end
  end
  if redis.call('HINCRBY', KEYS[4], 'jobs:' .. tenant, -1) <= 0 then
    redis.call('HDEL', KEYS[4], 'jobs:' .. tenant, 'slots:' .. tenant, 'weight:' .. tenant,
      'max_running:' .. tenant)
  end
end

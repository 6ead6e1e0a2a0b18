-- Note that somebody waits until the job is on disk: a write, of which WAITAOF can speak.
-- KEYS record   -> 1 | 0 (gone)
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'durable', '1')
return 1

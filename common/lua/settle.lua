-- A job that has ended while it waited is unfinished no more; its lane entry goes when it is claimed.
-- KEYS those of _tenants   ARGV job, bell
settle(ARGV[1], ARGV[2])

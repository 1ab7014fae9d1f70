-- ARGV: life. It may put members from now on.
redis.call('HSET', base .. 'live', ARGV[1], 1)
return 1

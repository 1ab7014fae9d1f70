-- ARGV: node, incarnation.
local lease = find(ARGV[1])
if lease and lease.incarnation == ARGV[2] and lease.is_condemned then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return 1

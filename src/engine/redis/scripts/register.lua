-- ARGV: life, line. The life may put members over this line from now on, and may append nothing more over the
-- lines before it.
if tonumber(redis.call('GET', fence_of(ARGV[1])) or 0) <= tonumber(ARGV[2]) then
  set_fence(ARGV[1], ARGV[2])
  redis.call('HSET', base .. 'live', ARGV[1], ARGV[2])
end
return 1

-- ARGV: place. Answers epoch, next offset, and the fields and values of the members.
if not state then return redis.error_reply('ERR the log does not exist') end
return { epoch, next_offset, redis.call('HGETALL', base .. 'm:' .. ARGV[1]) }

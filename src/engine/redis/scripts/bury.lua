-- ARGV: believed identity, fresh epoch, life, the batch that says that its members leave, the channel, the most
-- records, bytes and milliseconds that are retained.
open(ARGV[1], ARGV[2])
local life = ARGV[3]
local of = base .. 'of:' .. life
local places = redis.call('HKEYS', of)
for _, name in ipairs(places) do
  local place = base .. 'm:' .. name
  for _, field in ipairs(redis.call('HKEYS', place)) do
    if string.sub(field, 1, #life) == life then redis.call('HDEL', place, field) end
  end
end
redis.call('UNLINK', of)
local line = redis.call('HGET', base .. 'live', life) or redis.call('GET', fence_of(life))
if line then set_fence(life, text(line + 1)) end
redis.call('HDEL', base .. 'live', life)
if #places > 0 then
  append(ARGV[4], 1, ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]))
end
return 1

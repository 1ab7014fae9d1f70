-- ARGV: believed identity, fresh epoch, life (node and incarnation), line, head of the batch, the channel, the
-- most records, bytes and milliseconds that are retained; then segments: a kind, the number of records, the
-- records, and the arguments of the kind. The kinds are 'p' (records only), 'k' (a key that must be new), 'm'
-- (a member that is put) and any other (a member that is removed).
-- Answers the epoch, and for each segment its first offset, or the value of a key that was used before,
-- or -1 if the place is full, or -2 if the life may not change members.
open(ARGV[1], ARGV[2])
local life, line = ARGV[3], ARGV[4]
local live = redis.call('HGET', base .. 'live', life)
local may_change = live == line
if not may_change and tonumber(live or redis.call('GET', fence_of(life)) or 0) > tonumber(line) then
  return redis.error_reply('FENCED a later connection of the node has replaced this one')
end
local parts, outcomes, count = { ARGV[5] }, {}, 0
local at = 10
while ARGV[at] do
  local kind, records, outcome = ARGV[at], tonumber(ARGV[at + 1]), next_offset + count
  local is_appended = true
  local given = at + 3
  if kind == 'p' then
    at = given
  elseif kind == 'k' then
    local key = base .. 'k:' .. ARGV[given]
    local used = redis.call('GET', key)
    if used then
      outcome, is_appended = used, false
    else
      redis.call('SET', key, epoch .. struct.pack('>I8', outcome) .. ARGV[given + 1],
        'PX', ARGV[given + 2])
    end
    at = given + 3
  elseif kind == 'm' then
    local place, field = base .. 'm:' .. ARGV[given], life .. ARGV[given + 1]
    local is_new = redis.call('HEXISTS', place, field) == 0
    if not may_change then
      outcome, is_appended = -2, false
    elseif is_new and redis.call('HLEN', place) >= tonumber(ARGV[given + 3]) then
      outcome, is_appended = -1, false
    else
      redis.call('HSET', place, field, ARGV[given + 2])
      if is_new then redis.call('HINCRBY', base .. 'of:' .. life, ARGV[given], 1) end
    end
    at = given + 4
  else
    local place, of = base .. 'm:' .. ARGV[given], base .. 'of:' .. life
    if not may_change then
      outcome, is_appended = -2, false
    elseif redis.call('HDEL', place, life .. ARGV[given + 1]) == 1
      and redis.call('HINCRBY', of, ARGV[given], -1) <= 0 then
      redis.call('HDEL', of, ARGV[given])
    end
    at = given + 2
  end
  if is_appended then
    parts[#parts + 1] = ARGV[given - 1]
    count = count + records
  end
  outcomes[#outcomes + 1] = outcome
end
if count > 0 then
  append(table.concat(parts), count, ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8]),
    tonumber(ARGV[9]))
end
return { epoch, outcomes }

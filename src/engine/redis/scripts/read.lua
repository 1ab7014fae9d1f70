-- ARGV: believed identity, fresh epoch, the first offset to read or '', the bytes of messages after which the
-- reading ends. Answers the state, the head of the message before that offset or '', whether there is more,
-- and messages.
open(ARGV[1], ARGV[2])
local messages, size, has_more, before = {}, 0, 0, ''
if ARGV[3] ~= '' then
  local start, enough = ARGV[3] .. '-0', tonumber(ARGV[4])
  local preceding = {}
  if ARGV[3] ~= '0' then
    preceding = redis.call('XREVRANGE', base .. 'log', '(' .. start, '-', 'COUNT', 1)
  end
  -- The heads of the message and of its batch are shorter than 64 bytes together.
  if preceding[1] then before = string.sub(preceding[1][2][2], 1, 64) end
  repeat
    local found = redis.call('XRANGE', base .. 'log', start, '+', 'COUNT', 16)
    for _, entry in ipairs(found) do
      local message = entry[2][2]
      messages[#messages + 1] = message
      size = size + #message
      start = '(' .. entry[1]
      if size >= enough then
        has_more = 1
        break
      end
    end
  until #found < 16 or has_more == 1
end
return { packed(), before, has_more, messages }

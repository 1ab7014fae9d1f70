-- KEYS: the values on which all nodes agree, the leases. ARGV: the number of partitions, the owner of the
-- prefix, the format of the log.
-- Answers 'ok', 'foreign', or the name of the value that does not agree; then the value or the type of the key
-- that was found, or ''.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and kind ~= 'hash' then return { 'foreign', kind } end
local partitions = redis.call('HGET', KEYS[1], 'partitions')
if kind == 'hash' and not partitions then return { 'foreign', kind } end
if partitions and partitions ~= ARGV[1] then return { 'partitions', partitions } end
local owner, format = redis.call('HGET', KEYS[1], 'owner'), redis.call('HGET', KEYS[1], 'format')
-- A node that connects again writes nothing, so that it also connects to a server without memory for more.
if partitions and owner == ARGV[2] and format == ARGV[3] then return { 'ok', '' } end
local function any_node_lives()
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  for _, lease in ipairs(redis.call('HVALS', KEYS[2])) do
    if struct.unpack('>I8', lease, 9) > now then return true end
  end
  return false
end
if owner and owner ~= ARGV[2] and any_node_lives() then return { 'owner', '' } end
-- The first builds did not name the format.
if partitions and not format then format = '1' end
if format and format ~= ARGV[3] and any_node_lives() then return { 'format', format } end
redis.call('HSET', KEYS[1], 'partitions', ARGV[1], 'owner', ARGV[2], 'format', ARGV[3])
return { 'ok', '' }

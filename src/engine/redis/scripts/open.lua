-- Every script begins with these lines. KEYS[1] is the key of the log's state; all other keys of the log
-- have the same hash tag, so they are on the same server of a cluster.
--
-- state = epoch (8 bytes), first offset of the epoch, next offset, bytes ever appended, time of the last
-- mark in milliseconds (8 bytes each), id of the newest batch (8 bytes), identity of the server that the
-- epoch belongs to
local base = string.sub(KEYS[1], 1, -6)
local state = redis.call('GET', KEYS[1])
local epoch, from, next_offset, bytes, marked, last, identity
if state then
  epoch = string.sub(state, 1, 8)
  from, next_offset, bytes, marked = struct.unpack('>I8I8I8I8', state, 9)
  last, identity = string.sub(state, 41, 48), string.sub(state, 49)
end

local function text(number) return string.format('%d', number) end

local function packed()
  return epoch .. struct.pack('>I8I8I8I8', from, next_offset, bytes, marked) .. last .. identity
end

local function save() redis.call('SET', KEYS[1], packed()) end

-- A fence is the lowest number of a line over which a life may append. A request of a connection that a node has
-- given up may arrive after those of the next connection, because the network delays it, and would undo them. The
-- network delays nothing for an hour.
local function fence_of(life) return base .. 'fence:' .. life end

local function set_fence(life, line) redis.call('SET', fence_of(life), line, 'PX', 3600000) end

-- Begins a new epoch. Without a state, the other keys of the log are of no use, and are deleted. No node may
-- put members before it has heard of the epoch.
local function begin(fresh, server)
  if state then
    from = next_offset
  else
    from, next_offset, bytes, marked, last = 1, 1, 0, 0, string.rep('\0', 8)
    redis.call('UNLINK', base .. 'log', base .. 'marks')
  end
  for _, life in ipairs(redis.call('HKEYS', base .. 'live')) do
    for _, place in ipairs(redis.call('HKEYS', base .. 'of:' .. life)) do
      redis.call('UNLINK', base .. 'm:' .. place)
    end
    redis.call('UNLINK', base .. 'of:' .. life)
  end
  redis.call('UNLINK', base .. 'live')
  epoch, identity = fresh, server
  save()
end

-- Begins a new epoch if this server is not the one that the epoch belongs to. `believed` is the identity
-- that the node found when it connected; the server is asked only if that does not match.
--
-- The identity is the id of the process, which another one has after a restart, and the id of its data
-- (master_replid). A process that was a replica has the data of another one, and says so (master_replid2). One that
-- was none has its own, although the id of the data changes when a replica is attached, or was absent for an hour.
-- The believed identity of such a process is the first id alone.
local function open(believed, fresh)
  if state and string.sub(identity, 1, #believed) == believed then return end
  local process = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local replication = redis.call('INFO', 'replication')
  local server = process .. string.match(replication, 'master_replid:(%x+)')
  local was_replica = not string.match(replication, 'master_replid2:0+%s')
  local same = was_replica and server or process
  if not state or string.sub(identity, 1, #same) ~= same then begin(fresh, server) end
end

-- Appends a batch, publishes it, and drops what is no longer retained. The id of a batch is in the bytes 3
-- to 10 of its head. A mark remembers when and after how many bytes an offset was given; a mark is set at
-- most once a second and for each 1/64 of `bytes_max`. When nothing is appended for longer than `age`, all
-- that is retained expires. The times are those of this server, and a mark is also set after its clock was set back.
local function append(batch, count, channel, records_max, bytes_max, age)
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  local message = '\1\28' .. epoch .. struct.pack('>I8I4', next_offset, count) .. last .. batch
  local first, before = next_offset, bytes
  next_offset, bytes, last = next_offset + count, bytes + #message, string.sub(batch, 3, 10)
  local part, is_marked = bytes_max / 64, false
  if now - marked >= 1000 or now < marked or math.floor(before / part) ~= math.floor(bytes / part) then
    redis.call('RPUSH', base .. 'marks', struct.pack('>I8I8I8', now, first, before))
    marked, is_marked = now, true
    local cut
    while true do
      local two = redis.call('LRANGE', base .. 'marks', 0, 1)
      if #two < 2 then break end
      local _, _, total = struct.unpack('>I8I8I8', two[1])
      local time, offset = struct.unpack('>I8I8', two[2])
      if time >= now - age and bytes - total <= bytes_max then break end
      redis.call('LPOP', base .. 'marks')
      cut = offset
    end
    if cut then redis.call('XTRIM', base .. 'log', 'MINID', text(cut)) end
  end
  redis.call('XADD', base .. 'log', 'MINID', '~', text(math.max(next_offset - records_max, 1)),
    text(first) .. '-0', 'b', message)
  if is_marked then
    -- The next mark may be set a second later.
    redis.call('PEXPIRE', base .. 'log', text(age + 2000))
    redis.call('PEXPIRE', base .. 'marks', text(age + 2000))
  end
  redis.call('PUBLISH', channel, message)
  save()
end

-- The scripts of leases begin with these lines. KEYS[1] is a hash: the number of a node to its lease.
--
-- lease = incarnation (8 bytes), the times until, since and seen in milliseconds (8 bytes each), '0' or '1'
-- if it is condemned, instance (16 bytes), what the node publishes about itself
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function find(node)
  local lease = redis.call('HGET', KEYS[1], node)
  if not lease then return nil end
  local ends, since, seen = struct.unpack('>I8I8I8', lease, 9)
  return {
    incarnation = string.sub(lease, 1, 8), ends = ends, since = since, seen = seen,
    is_condemned = string.sub(lease, 33, 33) == '1', instance = string.sub(lease, 34, 49),
    info = string.sub(lease, 50),
  }
end

local function put(node, lease)
  redis.call('HSET', KEYS[1], node,
    lease.incarnation .. struct.pack('>I8I8I8', lease.ends, lease.since, lease.seen)
    .. (lease.is_condemned and '1' or '0') .. lease.instance .. lease.info)
end

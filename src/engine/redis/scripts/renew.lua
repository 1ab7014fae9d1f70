-- ARGV: node, incarnation, instance, milliseconds that the lease lasts, '1' for the first time, info.
-- Answers 0 if the lease holds, 1 if it has lapsed, 2 if another node has the number; the time; all leases.
local lease = find(ARGV[1])
local outcome = 0
if lease and lease.instance ~= ARGV[3] then
  outcome = 2
elseif ARGV[5] == '1' then
  if not lease or lease.incarnation ~= ARGV[2] then lease = { since = now } end
elseif not lease or lease.incarnation ~= ARGV[2] or lease.is_condemned then
  outcome = 1
end
if outcome == 0 then
  put(ARGV[1], {
    incarnation = ARGV[2], ends = now + tonumber(ARGV[4]), since = lease.since, seen = now,
    is_condemned = false, instance = ARGV[3], info = ARGV[6],
  })
end
return { outcome, now, redis.call('HGETALL', KEYS[1]) }

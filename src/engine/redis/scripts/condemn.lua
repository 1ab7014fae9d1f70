-- ARGV: node, incarnation, '1' if the node gives it up. Answers whether the lease is condemned.
local lease = find(ARGV[1])
if not lease or lease.incarnation ~= ARGV[2] then return 0 end
if not lease.is_condemned then
  if ARGV[3] ~= '1' and lease.ends > now then return 0 end
  lease.is_condemned = true
  put(ARGV[1], lease)
end
return 1

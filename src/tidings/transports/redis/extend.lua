-- Renew leases. ARGV: group, me, fence, then streams: key, n, n ids. Returns '' or the new fence.
local fence = redis.call('HGET', bus .. 'fences', ARGV[2]) or '0'
if fence ~= ARGV[3] then return fence end
local at = 4
while at <= #ARGV do
  local count = tonumber(ARGV[at + 1])
  local claim = {'XCLAIM', ARGV[at], ARGV[1], ARGV[2], 0}
  for i = at + 2, at + 1 + count do claim[#claim + 1] = ARGV[i] end
  claim[#claim + 1] = 'JUSTID' -- counts no delivery, and carries no body
  redis.call(unpack(claim))
  at = at + 2 + count
end
return ''

-- What `me` holds no more. ARGV: group, me, then streams: key, n, n ids. Returns the fence, then keys and ids.
local lost = {redis.call('HGET', bus .. 'fences', ARGV[2]) or '0'}
local at = 3
while at <= #ARGV do
  local key, count, ids = ARGV[at], tonumber(ARGV[at + 1]), {}
  for i = at + 2, at + 1 + count do ids[#ids + 1] = ARGV[i] end
  local mine = owned(key, ARGV[1], ARGV[2], ids)
  for _, id in ipairs(ids) do
    if not mine[id] then
      lost[#lost + 1] = key
      lost[#lost + 1] = id
    end
  end
  at = at + 2 + count
end
return lost

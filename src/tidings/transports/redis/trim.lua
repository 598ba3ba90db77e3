-- Drop what is older than a time and settled by every group. ARGV: milliseconds (Unix), how many groups a stream must
-- have to be trimmed at all, then keys.
-- Returns how many were dropped.
local function less(a, b) -- ids as strings
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  am, bm = tonumber(am), tonumber(bm)
  if am ~= bm then return am < bm end
  return tonumber(as) < tonumber(bs)
end

local function after(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end

local dropped = 0
for i = 3, #ARGV do
  local key = ARGV[i]
  local floor, groups = ARGV[1] .. '-0', redis.pcall('XINFO', 'GROUPS', key)
  if not groups.err and #groups >= tonumber(ARGV[2]) then
    for _, flat in ipairs(groups) do
      local group = {}
      for n = 1, #flat, 2 do group[flat[n]] = flat[n + 1] end
      local need = after(group['last-delivered-id'])
      if group.pending > 0 then need = redis.call('XPENDING', key, group.name)[2] end
      if less(need, floor) then floor = need end
      for _, flat_consumer in ipairs(redis.call('XINFO', 'CONSUMERS', key, group.name)) do
        local consumer = {}
        for n = 1, #flat_consumer, 2 do consumer[flat_consumer[n]] = flat_consumer[n + 1] end
        if consumer.pending == 0 and consumer.idle > 86400000 then
          redis.call('XGROUP', 'DELCONSUMER', key, group.name, consumer.name)
        end
      end
    end
    dropped = dropped + redis.call('XTRIM', key, 'MINID', floor)
  end
end
return dropped

-- Drop what is older than a time and settled by every group that had a member lately. ARGV: milliseconds (Unix), how many
-- groups a stream must have to be trimmed at all, seconds after which a group without members holds nothing back, then
-- keys. Returns how many were dropped, and the groups that had not settled some of it.
local function less(a, b) -- ids as strings
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  am, bm = tonumber(am), tonumber(bm)
  if am ~= bm then return am < bm end
  return tonumber(as) < tonumber(bs)
end

local function after(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if tonumber(seq) >= 2 ^ 53 then return string.format('%.0f-0', tonumber(ms) + 1) end -- a group that begins at a time
  return ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end

local abandoned = {} -- names by id
for name, group in pairs(all_groups()) do
  local seen = redis.call('HGET', bus .. 'seen', group.id)
  if not seen or present(bus .. 'members:' .. group.id) then
    seen = now()
    redis.call('HSET', bus .. 'seen', group.id, string.format('%.0f', seen))
  end
  if now() - tonumber(seen) > tonumber(ARGV[3]) then abandoned[group.id] = name end
end

local dropped, passed = 0, {}
for i = 4, #ARGV do
  local key, missed = ARGV[i], {}
  local floor, groups = ARGV[1] .. '-0', redis.pcall('XINFO', 'GROUPS', key)
  if not groups.err and #groups >= tonumber(ARGV[2]) then
    for _, flat in ipairs(groups) do
      local group = {}
      for n = 1, #flat, 2 do group[flat[n]] = flat[n + 1] end
      local need = after(group['last-delivered-id'])
      if group.pending > 0 then need = redis.call('XPENDING', key, group.name)[2] end
      if abandoned[group.name] then
        missed[abandoned[group.name]] = need
      elseif less(need, floor) then
        floor = need
      end
      for _, flat_consumer in ipairs(redis.call('XINFO', 'CONSUMERS', key, group.name)) do
        local consumer = {}
        for n = 1, #flat_consumer, 2 do consumer[flat_consumer[n]] = flat_consumer[n + 1] end
        if consumer.pending == 0 and consumer.idle > 86400000 then
          redis.call('XGROUP', 'DELCONSUMER', key, group.name, consumer.name)
        end
      end
    end
    for name, need in pairs(missed) do
      if less(need, floor) and redis.call('XRANGE', key, need, '(' .. floor, 'COUNT', 1)[1] then passed[name] = true end
    end
    dropped = dropped + redis.call('XTRIM', key, 'MINID', floor)
  end
end
local answer = {dropped}
for name in pairs(passed) do answer[#answer + 1] = name end
return answer

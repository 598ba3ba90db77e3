-- Settle what `me` holds: nothing happens unless it is known that nobody took any of it.
-- ARGV: group, me, fence, the most streams of a group;
-- streams with plain acknowledgements: how many, each: key, n, n ids;
-- destinations;
-- other settlements: how many, each: key, id, '1' if it has a mark, how many messages, those.
-- Returns {'fence', the new one} or {'done', numbers of those fenced, number and reason of those rejected, ...}
local group, me = ARGV[1], ARGV[2]
local fence = redis.call('HGET', bus .. 'fences', me) or '0'
if fence ~= ARGV[3] then return {'fence', fence} end

local at = 6
for _ = 1, tonumber(ARGV[5]) do
  local count = tonumber(ARGV[at + 1])
  redis.call('XACK', ARGV[at], group, unpack(ARGV, at + 2, at + 1 + count))
  at = at + 2 + count
end

local places
places, at = destinations(at, tonumber(ARGV[4]))

local settlements, ids = {}, {}
local count = tonumber(ARGV[at])
at = at + 1
for number = 1, count do
  local one = {key = ARGV[at], id = ARGV[at + 1], marked = ARGV[at + 2], messages = tonumber(ARGV[at + 3]), at = at + 4}
  at = one.at
  for _ = 1, one.messages do
    one.bad = one.bad or places[tonumber(ARGV[at])].bad
    at = beyond(at)
  end
  settlements[number] = one
  ids[one.key] = ids[one.key] or {}
  table.insert(ids[one.key], one.id)
end
local mine = {}
for key, wanted in pairs(ids) do mine[key] = owned(key, group, me, wanted) end

local fenced, rejected = {}, {}
for number, one in ipairs(settlements) do
  if not mine[one.key][one.id] then
    fenced[#fenced + 1] = number
  elseif one.bad then
    rejected[#rejected + 1] = number
    rejected[#rejected + 1] = one.bad
  else
    for _ = 1, one.messages do one.at = store(one.at, places) end
    if one.marked == '1' then redis.call('HDEL', bus .. 'marks:' .. group, one.key .. ' ' .. one.id) end
    redis.call('XACK', one.key, group, one.id)
    mine[one.key][one.id] = nil
  end
end
return {'done', fenced, rejected}

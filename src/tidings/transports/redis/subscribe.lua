-- Create or change a group; positions of all topics there are recorded when it returns.
-- ARGV: name, app, pattern, start ('$', '0' or an id: for its first time), the most streams of a group, own key of its
-- private address, then topics whose streams have keys of their own: topic, key. Returns its id, or why it cannot be.
local name, app, pattern, start, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local keys = {}
for i = 7, #ARGV, 2 do
  keys[ARGV[i]] = ARGV[i + 1]
  register(ARGV[i], ARGV[i + 1], most)
end
local function key_of(topic) return keys[topic] or bus .. 'topic:' .. topic end

local groups = all_groups()
local group, new = groups[name], false
if not group then
  new = true
  local id, taken, n = name, {}, 1
  for _, other in pairs(groups) do taken[other.id] = true end
  while taken[id] do
    n = n + 1
    id = name .. '~' .. n
  end
  group = {id = id, app = app, pattern = pattern, names = {name}, gaps = {}}
end
if not string.find(pattern, '[*>]') then
  local bad = register(pattern, key_of(pattern), most)
  if bad then return {'', bad} end
end
group.gaps = group.gaps or {}
local private = '_group.' .. name
if new then redis.call('SADD', bus .. 'topics', private) end

local before, width, topics = group.pattern, 0, redis.call('SMEMBERS', bus .. 'topics')
for _, topic in ipairs(topics) do
  if matches(pattern, topic) then width = width + 1 end
end
if width > most then return {'', 'WIDE ' .. name} end
group.app, group.pattern = app, pattern
for _, topic in ipairs(topics) do
  local key = key_of(topic)
  local bad
  if not reads(group, topic) then
    if not new and before ~= pattern and matches(before, topic) then
      -- left: drained up to here
      local last = redis.call('XINFO', 'STREAM', key)
      for i = 1, #last, 2 do
        if last[i] == 'last-generated-id' then
          group.gaps[topic] = group.gaps[topic] or {}
          table.insert(group.gaps[topic], {last[i + 1], ''})
        end
      end
    end
  elseif new then
    bad = join(key, group.id, topic == private and '$' or start)
  elseif before ~= pattern and not matches(before, topic) and topic ~= private then
    -- added: from now on
    local gaps, seen = group.gaps[topic], redis.call('XINFO', 'STREAM', key)
    for i = 1, #seen, 2 do
      if seen[i] == 'last-generated-id' and gaps then gaps[#gaps][2] = seen[i + 1] end
    end
    bad = join(key, group.id, '$')
  else
    bad = join(key, group.id, '0') -- there already, unless the stream was deleted underneath
  end
  if bad then return {'', bad} end
end
redis.call('HSET', bus .. 'width', group.id, width)
redis.call('HSET', bus .. 'groups', name, cjson.encode(group))
redis.call('HSET', bus .. 'seen', group.id, string.format('%.0f', now()))
redis.call('PUBLISH', control, 'group ' .. group.id)
return {group.id, ''}

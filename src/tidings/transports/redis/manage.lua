-- Rename, drop or move a group at rest. ARGV: what, group, argument, key of the argument's private address, then
-- topics whose streams have keys of their own: topic, key. Returns '' or why not.
local what, name, argument = ARGV[1], ARGV[2], ARGV[3]
local keys = {}
for i = 5, #ARGV, 2 do keys[ARGV[i]] = ARGV[i + 1] end
local function key_of(topic) return keys[topic] or bus .. 'topic:' .. topic end

local blob = redis.call('HGET', bus .. 'groups', name)
if not blob then return 'NOGROUP' end
local group = cjson.decode(blob)
group.gaps = group.gaps or {}
if present(bus .. 'members:' .. group.id) then return 'BUSY' end

local function save(as)
  redis.call('HSET', bus .. 'groups', as, cjson.encode(group))
end

if what == 'rename' then
  if redis.call('HEXISTS', bus .. 'groups', argument) == 1 then return 'EXISTS' end
  redis.call('HDEL', bus .. 'groups', name)
  table.insert(group.names, argument)
  redis.call('SADD', bus .. 'topics', '_group.' .. argument)
  join(ARGV[4], group.id, '0')
  save(argument)
elseif what == 'drop' then
  local private = {}
  for _, known in ipairs(group.names) do private['_group.' .. known] = true end
  for _, topic in ipairs(redis.call('SMEMBERS', bus .. 'topics')) do
    redis.pcall('XGROUP', 'DESTROY', key_of(topic), group.id)
    if private[topic] then
      redis.call('DEL', key_of(topic))
      redis.call('SREM', bus .. 'topics', topic)
    end
  end
  for _, member in ipairs(redis.call('ZRANGE', bus .. 'due', 0, -1)) do
    if private[string.match(member, '^%d+:(.*)$')] then
      redis.call('ZREM', bus .. 'due', member)
      redis.call('HDEL', bus .. 'parked', member)
    end
  end
  redis.call('HDEL', bus .. 'groups', name)
  redis.call('HDEL', bus .. 'width', group.id)
  redis.call('HDEL', bus .. 'seen', group.id)
  redis.call('DEL', bus .. 'marks:' .. group.id)
elseif what == 'seek' then
  for _, topic in ipairs(redis.call('SMEMBERS', bus .. 'topics')) do
    if matches(group.pattern, topic) then
      local key = key_of(topic)
      -- what its dead members still hold comes again: not twice
      for _, entry in ipairs(redis.call('XPENDING', key, group.id, '(' .. argument, '+', 1000000)) do
        redis.call('XACK', key, group.id, entry[1])
      end
      redis.call('XGROUP', 'SETID', key, group.id, argument)
      group.gaps[topic] = nil
    end
  end
  save(name)
end
redis.call('PUBLISH', control, 'group ' .. group.id)
return ''

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

local private = {}
for _, known in ipairs(group.names) do private['_group.' .. known] = true end

-- What is parked for it: its members of `due`.
local function parked()
  local found = {}
  for _, member in ipairs(redis.call('ZRANGE', bus .. 'due', 0, -1)) do
    if private[string.match(member, '^%d+:(.*)$')] then found[#found + 1] = member end
  end
  return found
end

local function unpark(member)
  redis.call('ZREM', bus .. 'due', member)
  redis.call('HDEL', bus .. 'parked', member)
end

-- Whoever holds some of a stream without being here must look what is left before it settles: others may get it now.
local function taken(key)
  local held = redis.pcall('XPENDING', key, group.id)
  for _, holder in ipairs(held[4] or {}) do redis.call('HINCRBY', bus .. 'fences', holder[1], 1) end
end

local function acknowledge(key, id)
  redis.call('XACK', key, group.id, id)
  redis.call('HDEL', bus .. 'marks:' .. group.id, key .. ' ' .. id)
end

-- Whether these fields, from the first, are a copy of what a seek brings back.
local function again(fields, first)
  for i = first, #fields, 2 do
    local topic, id = string.match(fields[i] == 'ce-tdgorigin' and fields[i + 1] or '', '^(.*)@(%d+%-%d+)$')
    if topic and matches(group.pattern, topic) then
      local found = redis.pcall('XREVRANGE', key_of(topic), id, '(' .. argument, 'COUNT', 1)
      return found[1] and found[1][1] == id
    end
  end
end

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
  for _, topic in ipairs(redis.call('SMEMBERS', bus .. 'topics')) do
    taken(key_of(topic))
    redis.pcall('XGROUP', 'DESTROY', key_of(topic), group.id)
    if private[topic] then
      redis.call('DEL', key_of(topic))
      redis.call('SREM', bus .. 'topics', topic)
    end
  end
  for _, member in ipairs(parked()) do unpark(member) end
  redis.call('HDEL', bus .. 'groups', name)
  redis.call('HDEL', bus .. 'width', group.id)
  redis.call('HDEL', bus .. 'seen', group.id)
  redis.call('DEL', bus .. 'marks:' .. group.id)
elseif what == 'seek' then
  for _, topic in ipairs(redis.call('SMEMBERS', bus .. 'topics')) do
    if matches(group.pattern, topic) then
      local key = key_of(topic)
      -- what its dead members still hold comes again: not twice
      taken(key)
      for _, entry in ipairs(redis.call('XPENDING', key, group.id, '(' .. argument, '+', 1000000)) do
        acknowledge(key, entry[1])
      end
      redis.call('XGROUP', 'SETID', key, group.id, argument)
      group.gaps[topic] = nil
    end
  end
  -- nor what waits to be tried again
  for _, member in ipairs(parked()) do
    local fields = redis.call('HGET', bus .. 'parked', member)
    if fields and again(cmsgpack.unpack(fields), 3) then unpark(member) end
  end
  for topic in pairs(private) do
    local key, from = key_of(topic), '-'
    taken(key)
    repeat
      local page = redis.call('XRANGE', key, from, '+', 'COUNT', 100)
      for _, entry in ipairs(page) do
        if again(entry[2], 1) then
          acknowledge(key, entry[1])
          redis.call('XDEL', key, entry[1])
        end
        from = '(' .. entry[1]
      end
    until #page < 100
  end
  save(name)
end
redis.call('PUBLISH', control, 'group ' .. group.id)
return ''

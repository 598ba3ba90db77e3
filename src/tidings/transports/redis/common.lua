-- What the other scripts begin with. KEYS[1] is the bus: its keys begin with it, and its hash tag keeps them together.
local bus = KEYS[1]
local control = bus .. 'control'

-- Whether a topic is in a pattern; one that begins with a wildcard matches no reserved topic.
local function matches(pattern, topic)
  local wanted = string.gmatch(pattern, '[^.]+')
  local given = string.gmatch(topic, '[^.]+')
  local want, have = wanted(), given()
  if (want == '*' or want == '>') and string.sub(topic, 1, 1) == '_' then return false end
  while want and have do
    if want == '>' then return true end
    if want ~= '*' and want ~= have then return false end
    want, have = wanted(), given()
  end
  return not want and not have
end

-- Make sure that a group reads a stream, from `at` unless it does already.
local function join(key, group, at)
  local made = redis.pcall('XGROUP', 'CREATE', key, group, at, 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made.err end
end

-- The groups, by name: what subscribe.lua wrote.
local function all_groups()
  local found, flat = {}, redis.call('HGETALL', bus .. 'groups')
  for i = 1, #flat, 2 do found[flat[i]] = cjson.decode(flat[i + 1]) end
  return found
end

local function reads(group, topic)
  if matches(group.pattern, topic) then return true end
  for _, name in ipairs(group.names) do
    if topic == '_group.' .. name then return true end
  end
  return false
end

-- A topic on first use: every group whose pattern matches reads it from its beginning. Returns why it cannot be.
local function register(topic, key, most)
  if redis.call('SISMEMBER', bus .. 'topics', topic) == 1 then return end
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= 'stream' then return 'WRONGTYPE ' .. key .. ' is no stream but a ' .. kind end
  local joining = {}
  for name, group in pairs(all_groups()) do
    if reads(group, topic) then
      joining[#joining + 1] = group.id
      if tonumber(redis.call('HGET', bus .. 'width', group.id) or '0') >= most then return 'WIDE ' .. name end
    end
  end
  redis.call('SADD', bus .. 'topics', topic)
  for _, id in ipairs(joining) do
    join(key, id, '0')
    redis.call('HINCRBY', bus .. 'width', id, 1)
  end
  redis.call('PUBLISH', control, 'topic ' .. topic)
end

local function present(channel)
  return redis.call('PUBSUB', 'NUMSUB', channel)[2] > 0
end

-- Whether somebody is there who reads a topic: for those who wait for an answer.
local function heard(topic)
  if present(bus .. 'listens:' .. topic) then return true end
  for _, group in pairs(all_groups()) do
    if matches(group.pattern, topic) and present(bus .. 'members:' .. group.id) then return true end
  end
  return false
end

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- Keep fields (ARGV[first..last]) until `due`, which due.lua watches.
local function park(due, topic, key, first, last)
  local fields = {topic, key}
  for i = first, last do fields[#fields + 1] = ARGV[i] end
  local member = redis.call('INCR', bus .. 'parkings') .. ':' .. topic
  redis.call('HSET', bus .. 'parked', member, cmsgpack.pack(fields))
  redis.call('ZADD', bus .. 'due', due, member)
  if redis.call('ZRANGE', bus .. 'due', 0, 0)[1] == member then redis.call('PUBLISH', control, 'due') end
end

-- Destinations in ARGV from `at`: how many, then topic, key, '1' where somebody must be there. Returns those, each with
-- `bad` (why nothing can go there), and the next index.
local function destinations(at, most)
  local found = {}
  for i = 1, tonumber(ARGV[at]) do
    local place = {topic = ARGV[at + 1], key = ARGV[at + 2]}
    if ARGV[at + 3] == '1' and not heard(place.topic) then place.bad = 'NOANSWERER ' .. place.topic end
    if string.sub(place.topic, 1, 7) ~= '_reply.' then
      place.bad = place.bad or register(place.topic, place.key, most)
    end
    found[i] = place
    at = at + 3
  end
  return found, at + 1
end

-- One message in ARGV from `at`: its destination's number, when it is due ('', seconds, '+' seconds from now), how
-- many fields, and those. The next index.
local function beyond(at)
  return at + 3 + tonumber(ARGV[at + 2])
end

-- Store it; the next index.
local function store(at, places)
  local place, due = places[tonumber(ARGV[at])], ARGV[at + 1]
  local first, last = at + 3, at + 2 + tonumber(ARGV[at + 2])
  if string.sub(place.topic, 1, 7) == '_reply.' then
    redis.call('PUBLISH', bus .. place.topic, ARGV[first])
    return last + 1
  end
  if due ~= '' then
    local current, moment = now(), tonumber(due)
    if string.sub(due, 1, 1) == '+' then moment = current + tonumber(string.sub(due, 2)) end
    if moment > current then
      park(string.format('%.6f', moment), place.topic, place.key, first, last)
      return last + 1
    end
  end
  redis.call('XADD', place.key, '*', unpack(ARGV, first, last))
  return last + 1
end

-- What a consumer holds, `ids` included if it does, as a set.
local function owned(key, group, consumer, ids)
  local found = {}
  local first, last, most = '-', '+', 1000000
  if #ids == 1 then first, last, most = ids[1], ids[1], 1 end
  local held = redis.pcall('XPENDING', key, group, first, last, most, consumer)
  for _, entry in ipairs(held.err and {} or held) do found[entry[1]] = true end
  return found
end

-- Take over what was held for a lease without a sign of life, or by a member whose connection to this very server has
-- been gone for a while: then its process has most likely died. One sweep of a group at a time.
-- ARGV: group, me, milliseconds: of the lease, between sweeps; the most to take; the server's run id; seconds a member
-- may be gone; then keys. Returns for each taken: key, entry, crashes.
local group, me, lease, most, run = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5]), ARGV[6]
if not redis.call('SET', bus .. 'sweeping:' .. group, me, 'NX', 'PX', ARGV[4]) then return {} end

local absent = {}
local function gone(consumer)
  local member = string.match(consumer, '^(.*)%.')
  if not member then return false end
  if absent[member] ~= nil then return absent[member] end
  absent[member] = false
  local missing = bus .. 'missing'
  if redis.call('HGET', bus .. 'members', member) ~= run or present(bus .. 'member:' .. member) then
    redis.call('HDEL', missing, member)
  else
    local since = redis.call('HGET', missing, member)
    if not since then
      redis.call('HSET', missing, member, string.format('%.3f', now()))
    else
      absent[member] = now() - tonumber(since) >= tonumber(ARGV[7])
    end
  end
  return absent[member]
end

local taken, losers = {}, {}
local function add(key, entry)
  local marks, field = bus .. 'marks:' .. group, key .. ' ' .. entry[1]
  local crashes, started = string.match(redis.call('HGET', marks, field) or '', '^(%d+):(%d)$')
  if started == '1' then
    crashes = tostring(tonumber(crashes) + 1)
    redis.call('HSET', marks, field, crashes .. ':0')
  end
  taken[#taken + 1] = key
  taken[#taken + 1] = entry
  taken[#taken + 1] = crashes or ''
  most = most - 1
end

local function take(key, entries)
  local claim = {'XCLAIM', key, group, me, 0}
  for _, entry in ipairs(entries) do
    claim[#claim + 1] = entry[1]
    if entry[2] ~= me then losers[entry[2]] = true end
  end
  if #claim == 5 then return end
  for n, entry in ipairs(redis.call(unpack(claim))) do
    if entry then
      add(key, entry)
    else
      redis.call('XACK', key, group, claim[5 + n]) -- it was deleted; from Redis 7 on XCLAIM does this itself
    end
  end
end

for i = 8, #ARGV do
  local key = ARGV[i]
  local summary = redis.pcall('XPENDING', key, group)
  if not summary.err and summary[1] > 0 and most > 0 then
    for _, holder in ipairs(summary[4]) do
      if most > 0 and holder[1] ~= me and gone(holder[1]) then
        take(key, redis.call('XPENDING', key, group, '-', '+', most, holder[1]))
        if #redis.call('XPENDING', key, group, '-', '+', 1, holder[1]) == 0 then
          redis.call('XGROUP', 'DELCONSUMER', key, group, holder[1]) -- nothing is pending: nothing is dropped with it
        end
      end
    end
    if most > 0 then take(key, redis.call('XPENDING', key, group, 'IDLE', lease, '-', '+', most)) end
  end
end
for loser in pairs(losers) do
  redis.call('HINCRBY', bus .. 'fences', loser, 1)
  redis.call('PUBLISH', control, 'lost ' .. loser)
end
return taken

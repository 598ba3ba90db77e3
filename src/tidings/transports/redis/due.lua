-- Move what is due to its stream. ARGV: the most streams of a group, the most to move.
-- Returns how many were moved, and in how many seconds the next is due ('' if there is none).
local current, moved = now(), 0
for _, member in ipairs(redis.call('ZRANGEBYSCORE', bus .. 'due', '-inf', current, 'LIMIT', 0, ARGV[2])) do
  local blob = redis.call('HGET', bus .. 'parked', member)
  if blob then
    local fields = cmsgpack.unpack(blob)
    if register(fields[1], fields[2], tonumber(ARGV[1])) then
      redis.call('ZADD', bus .. 'due', current + 60, member) -- it cannot go there now; it is not dropped
    else
      redis.call('XADD', fields[2], '*', unpack(fields, 3))
      redis.call('ZREM', bus .. 'due', member)
      redis.call('HDEL', bus .. 'parked', member)
      moved = moved + 1
    end
  else
    redis.call('ZREM', bus .. 'due', member)
  end
end
local next = redis.call('ZRANGE', bus .. 'due', 0, 0, 'WITHSCORES')
return {moved, next[2] and string.format('%.6f', math.max(0, tonumber(next[2]) - now())) or ''}

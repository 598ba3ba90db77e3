-- One caller wins a tick. ARGV: name, due.
local last = redis.call('HGET', bus .. 'ticks', ARGV[1])
if last and tonumber(ARGV[2]) <= tonumber(last) then return 0 end
redis.call('HSET', bus .. 'ticks', ARGV[1], ARGV[2])
return 1

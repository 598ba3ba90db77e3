-- Note that a suspect is about to start. ARGV: group, me, key, id, crashes so far. Returns whether it is still held.
local mine = owned(ARGV[3], ARGV[1], ARGV[2], {ARGV[4]})
if not mine[ARGV[4]] then return 0 end
redis.call('HSET', bus .. 'marks:' .. ARGV[1], ARGV[3] .. ' ' .. ARGV[4], ARGV[5] .. ':1')
return 1

-- A member leaves: its name goes from streams where it holds nothing. ARGV: group, me, then keys.
for i = 3, #ARGV do
  local held = redis.pcall('XPENDING', ARGV[i], ARGV[1], '-', '+', 1, ARGV[2])
  if not held.err and #held == 0 then redis.call('XGROUP', 'DELCONSUMER', ARGV[i], ARGV[1], ARGV[2]) end
end
redis.call('HDEL', bus .. 'fences', ARGV[2])
return ''

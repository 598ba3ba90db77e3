-- ARGV: keys of streams. Returns their bytes of memory together, and the oldest entry's milliseconds (Unix; 0: none).
local bytes, oldest = 0, 0
for _, key in ipairs(ARGV) do
  local first = redis.pcall('XRANGE', key, '-', '+', 'COUNT', 1)
  if not first.err and first[1] then
    bytes = bytes + (redis.call('MEMORY', 'USAGE', key) or 0)
    local at = tonumber(string.match(first[1][1], '^%d+'))
    if oldest == 0 or at < oldest then oldest = at end
  end
end
return {bytes, oldest}

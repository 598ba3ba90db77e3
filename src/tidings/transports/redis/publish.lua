-- Store messages, all or none. ARGV: the most streams of a group; destinations; how many messages; those.
-- Returns '' or why not.
local places, at = destinations(2, tonumber(ARGV[1]))
for _, place in ipairs(places) do
  if place.bad then return place.bad end
end
local count = tonumber(ARGV[at])
at = at + 1
for _ = 1, count do at = store(at, places) end
return ''

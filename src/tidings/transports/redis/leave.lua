-- What a group was given of a topic that it has left is done; once it is drained, the topic is read no more.
-- ARGV: group's id, topic, key, ids.
redis.call('XACK', ARGV[3], ARGV[1], unpack(ARGV, 4))
for name, group in pairs(all_groups()) do
  local gaps = group.id == ARGV[1] and group.gaps and group.gaps[ARGV[2]]
  if gaps and gaps[#gaps][2] == '' and redis.call('XPENDING', ARGV[3], ARGV[1])[1] == 0 then
    redis.call('XGROUP', 'DESTROY', ARGV[3], ARGV[1])
    group.gaps[ARGV[2]] = nil
    redis.call('HSET', bus .. 'groups', name, cjson.encode(group))
    redis.call('PUBLISH', control, 'group ' .. ARGV[1])
  end
end
return ''

-- A group's messages in one stretch of a segment. {by}: NOT INDEXED reads every row (many match), INDEXED BY only matching ones.
SELECT seq, channel, slot, head, body FROM {table} {by}
WHERE {channels} AND seq > ? AND seq <= ? {slots} ORDER BY seq LIMIT ?

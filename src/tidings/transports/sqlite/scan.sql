-- Messages of one table as one row: each step of a statement lets go of the GIL, and to get it back may take a while.
-- Numbers and records come in the same order. {by}: NOT INDEXED reads every row (many match), INDEXED BY only matching
-- ones.
SELECT count(*), min(seq), max(seq), group_concat(seq), CAST(group_concat(record, '') AS BLOB) FROM (
    SELECT seq, record FROM {table} {by} WHERE {where} ORDER BY seq LIMIT ?)

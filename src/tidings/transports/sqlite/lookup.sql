-- Records of one table by their keys, as one row: each step of a statement lets go of the GIL.
SELECT json_group_array(json_array(key, version, CASE WHEN due IS NOT NULL THEN format('%!.17g', due) END, length(value))), CAST(group_concat(value, '') AS BLOB) FROM (
    SELECT key, version, due, value FROM record WHERE tbl = ? AND key IN (SELECT value FROM json_each(?)))

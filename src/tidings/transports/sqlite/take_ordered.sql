-- The same in an ordered group: of my slots (a bit mask), the lowest of its key, and nothing of that key in flight.
UPDATE parked SET member = :member, take = take + 1 WHERE grp = :grp AND seq IN (
    SELECT seq FROM (
        SELECT seq, due, suspect, sum(suspect) OVER (ORDER BY suspect, due, seq) AS suspects FROM parked p
        WHERE grp = :grp AND member IS NULL AND due <= :now AND ((:slots >> slot) & 1) AND (key IS NULL OR (
            NOT EXISTS (SELECT 1 FROM parked b WHERE b.grp = :grp AND b.key = p.key AND b.seq < p.seq)
            AND key NOT IN (SELECT value FROM json_each(:flying)))))
    WHERE suspect = 0 OR suspects <= :suspects ORDER BY due, seq LIMIT :limit)
RETURNING seq, take, failures, crashes, suspect

-- A look inside, which disturbs nobody.

-- How many of a group's messages nobody has handed out yet, and the first of them.
CREATE FUNCTION backlog(_grp int, OUT count bigint, OUT first bigint) LANGUAGE plpgsql SET jit = off AS $$
DECLARE in_order bool := (SELECT ordered FROM grp WHERE id = _grp); after bigint[];
BEGIN
    after := CASE WHEN in_order THEN (SELECT array_agg(seq ORDER BY slot) FROM slot WHERE grp = _grp)
        ELSE (SELECT array_agg(seq ORDER BY priority) FROM cursor WHERE grp = _grp) END;
    SELECT count(DISTINCT s.seq), min(s.seq) INTO count, first
    FROM route r CROSS JOIN LATERAL (
        SELECT m.seq FROM stored m WHERE m.channel = r.channel AND m.seq BETWEEN r.first AND r.last
            AND m.seq > CASE WHEN in_order THEN (SELECT min(a) FROM unnest(after) a) ELSE after[1 + r.priority] END
            AND (NOT in_order OR m.seq > after[1 + (coalesce(m.hash, m.seq) & 63)])
    ) s WHERE r.grp = _grp;
END $$;

CREATE FUNCTION groups_info(_groups text[]) RETURNS TABLE(
    name text, app text, pattern text, lag bigint, in_flight bigint, parked bigint, dead bigint, oldest float8, members bigint
) LANGUAGE plpgsql AS $$
DECLARE g record; l record; todo bigint; first bigint; held record;
BEGIN
    FOR g IN SELECT * FROM grp WHERE grp.name = ANY (_groups) ORDER BY grp.name LOOP
        SELECT * INTO l FROM backlog(g.id);
        SELECT count(*), min(u) INTO todo, first FROM claim c, unpack(c.todo) u WHERE c.grp = g.id;
        SELECT count(*) FILTER (WHERE p.member IS NOT NULL) AS taken, count(*) FILTER (WHERE p.member IS NULL) AS waiting, min(p.seq) AS seq
        INTO held FROM parked p WHERE p.grp = g.id;
        RETURN QUERY SELECT g.name, g.app,
            (SELECT p.pattern FROM pattern p WHERE p.grp = g.id AND p.last = 4611686018427387904 AND p.pattern NOT LIKE '\_group.%' LIMIT 1),
            l.count, todo + held.taken, held.waiting,
            (SELECT count(*) FROM dead d JOIN channel c ON c.id = d.channel WHERE c.topic = '_dead.' || g.name),
            (SELECT m.at FROM (SELECT * FROM stored UNION ALL SELECT * FROM kept) m WHERE m.seq = least(l.first, first, held.seq) LIMIT 1),
            (SELECT count(*) FROM part p WHERE p.grp = g.id);
    END LOOP;
END $$;

CREATE FUNCTION topics_info() RETURNS TABLE(topic text, messages bigint, last float8) LANGUAGE sql AS $$
    SELECT c.topic, sum(s.count)::bigint, max(s.last)
    FROM (SELECT channel, count(*) AS count, max(at) AS last FROM stored GROUP BY channel) s JOIN channel c ON c.id = s.channel
    GROUP BY c.topic ORDER BY c.topic
$$;

-- Who has kept others from storing for longer than some seconds: as text, for an operator.
CREATE FUNCTION holder(_seconds float8) RETURNS text LANGUAGE sql AS $$
    SELECT format('the transaction of process %s (%s %s, since %s) holds the log: it is %s', a.pid, a.usename, a.application_name,
        a.xact_start, a.state)
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.classid = 'log'::regclass::oid AND l.objid = 0 AND l.granted
        AND a.xact_start < clock_timestamp() - make_interval(secs => _seconds)
    LIMIT 1
$$;

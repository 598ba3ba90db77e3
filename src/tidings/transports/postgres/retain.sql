-- Retention: whole partitions, the oldest first; never one that a group still needs.

-- Whether a group has unread messages up to a number.
CREATE FUNCTION needs(_grp int, _last bigint) RETURNS bool LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE in_order bool := (SELECT ordered FROM grp WHERE id = _grp); after bigint[];
BEGIN
    IF in_order THEN
        after := (SELECT array_agg(seq ORDER BY slot) FROM slot WHERE grp = _grp);
        RETURN EXISTS (
            SELECT FROM (SELECT DISTINCT channel FROM route WHERE grp = _grp) r CROSS JOIN LATERAL (
                SELECT FROM log m WHERE m.channel = r.channel AND m.seq > (SELECT min(a) FROM unnest(after) a) AND m.seq <= _last
                    AND m.seq > after[1 + (coalesce(m.hash, m.seq) & 63)]
                    AND EXISTS (SELECT FROM route w WHERE w.grp = _grp AND w.channel = m.channel AND m.seq BETWEEN w.first AND w.last)
                LIMIT 1) found);
    END IF;
    RETURN EXISTS (
        SELECT FROM cursor c JOIN (SELECT DISTINCT priority, channel FROM route WHERE grp = _grp) r USING (priority) CROSS JOIN LATERAL (
            SELECT FROM log m WHERE m.channel = r.channel AND m.seq > c.seq AND m.seq <= _last
                AND EXISTS (SELECT FROM route w WHERE w.grp = _grp AND w.channel = m.channel AND m.seq BETWEEN w.first AND w.last)
            LIMIT 1) found
        WHERE c.grp = _grp AND c.seq < _last);
END $$;

-- Whether anything up to a number is in hand, or unread by a group that had a member in the last 7 days.
CREATE FUNCTION needed(_last bigint) RETURNS bool LANGUAGE sql AS $$
    SELECT EXISTS (SELECT FROM claim WHERE todo < int8send(_last + 1)) OR EXISTS (
        SELECT FROM grp g WHERE (seen > unix() - 604800 OR EXISTS (SELECT FROM part WHERE grp = g.id)) AND needs(g.id, _last))
$$;

-- Begin a new partition when the newest is old enough, and drop the oldest one, if it is past its time and nobody needs
-- it. `dropped`: its table; `gone`: groups without a member for 7 days that had not read it; `blocked`: somebody reads the
-- log in a long transaction, and what waits for that would keep all others waiting: better later.
CREATE FUNCTION retain(_retain float8, OUT dropped text, OUT gone text[], OUT blocked bool) LANGUAGE plpgsql AS $$
DECLARE now float8 := unix(); s record; newest float8;
BEGIN
    gone := '{}';
    blocked := false;
    IF NOT pg_try_advisory_xact_lock('segment'::regclass::oid::int, 0) THEN
        RETURN;
    END IF;
    PERFORM soft();
    SELECT * INTO s FROM segment ORDER BY n DESC LIMIT 1;
    newest := (SELECT at FROM log ORDER BY seq DESC LIMIT 1);
    IF head() >= s.first AND (newest < now - _retain OR s.born < now - greatest(_retain / 8, 1)) THEN
        PERFORM numbering();
        SELECT * INTO s FROM segment ORDER BY n DESC LIMIT 1;  -- as it is now that nobody changes it
        IF head() >= s.first THEN
            PERFORM setval('seq', s.last);
            PERFORM grow(s.last - s.first + 1);
        END IF;
    END IF;
    SELECT * INTO s FROM segment ORDER BY n LIMIT 1;
    newest := (SELECT at FROM log WHERE seq <= s.last ORDER BY seq DESC LIMIT 1);
    IF s.last > head() OR newest >= now - _retain
        OR needed(s.last) THEN
        RETURN;
    END IF;
    BEGIN
        PERFORM numbering();
        PERFORM set_config('lock_timeout', '100ms', true);
        LOCK TABLE log IN ACCESS EXCLUSIVE MODE;
        IF needed(s.last) THEN  -- since we looked
            RETURN;
        END IF;
        gone := ARRAY(SELECT name FROM grp g WHERE needs(g.id, s.last));
        INSERT INTO kept SELECT m.* FROM log m WHERE seq <= s.last AND EXISTS (SELECT FROM parked p WHERE p.seq = m.seq)
        ON CONFLICT DO NOTHING;
        DELETE FROM kept k WHERE NOT EXISTS (SELECT FROM parked p WHERE p.seq = k.seq);
        dropped := format('log_%s', s.n);
        EXECUTE format('DROP TABLE %I', dropped);
        DELETE FROM segment WHERE n = s.n;
    EXCEPTION WHEN lock_not_available THEN
        gone := '{}';
        dropped := NULL;
        blocked := true;
    END;
END $$;

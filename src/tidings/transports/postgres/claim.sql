-- Handing out.

-- Rising numbers as the bytes of `_numbers.py`, and back.
CREATE FUNCTION pack(_seqs bigint[]) RETURNS bytea LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE n int := cardinality(_seqs); gaps int[];
BEGIN
    IF _seqs[n] - _seqs[1] = n - 1 THEN
        RETURN int8send(_seqs[1]) || 'B'::bytea || repeat(E'\001', n - 1)::bytea;
    END IF;
    gaps := ARRAY(SELECT (b - a)::int FROM unnest(_seqs[:n - 1], _seqs[2:]) g(a, b));
    IF 256 > ALL (gaps) THEN
        RETURN int8send(_seqs[1]) || 'B'::bytea || (SELECT string_agg(substring(int2send(gap::int2), 2), '') FROM unnest(gaps) gap);
    END IF;
    RETURN int8send(_seqs[1]) || 'I'::bytea || (
        SELECT string_agg(substring(s, 4, 1) || substring(s, 3, 1) || substring(s, 2, 1) || substring(s, 1, 1), '')
        FROM (SELECT int4send(gap) AS s FROM unnest(gaps) gap) b);
END $$;

CREATE FUNCTION unpack(_todo bytea) RETURNS SETOF bigint LANGUAGE sql IMMUTABLE AS $$
    WITH head AS (
        SELECT ('x' || encode(substring(_todo, 1, 8), 'hex'))::bit(64)::bigint AS first,
            CASE chr(get_byte(_todo, 8)) WHEN 'B' THEN 1 WHEN 'I' THEN 4 ELSE 8 END AS size
    ), gaps AS (
        SELECT i, sum(get_byte(_todo, 9 + i * size + b)::bigint << (8 * b))::bigint AS gap
        FROM head, generate_series(0, (octet_length(_todo) - 9) / size - 1) i, generate_series(0, size - 1) b GROUP BY i
    )
    SELECT first FROM head UNION ALL SELECT (first + sum(gap) OVER (ORDER BY i))::bigint FROM head, gaps
$$;

-- Fresh messages of some channels beyond a number, in one snapshot: up to `_limit` and 32 MiB; how far was looked, and
-- whether there may be more. Few channels are found by index, many by reading on. `_upto`: the highest number when the
-- channels were read, or before: what came later may be of a channel that came later. `_after`: of ordered groups, the
-- positions of the slots that are mine; only they need `hashes`. `_mixed`: what the group reads differs by number here.
CREATE FUNCTION fresh(
    _grp int, _channels int[], _from bigint, _upto bigint, _limit int, _after bigint[], _mixed bool,
    OUT seqs bigint[], OUT hashes int[], OUT records bytea, OUT looked bigint, OUT more bool
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    width int := greatest(4 * _limit, 1024); each int := 2 * _limit / cardinality(_channels) + 2;
    most int := 33554432 / _limit; sole int := _channels[1]; small int; bound bigint;
BEGIN
    IF cardinality(_channels) = 1 AND _after IS NULL AND NOT _mixed THEN
        SELECT array_agg(f.seq), string_agg(f.record, ''), count(f.record) INTO seqs, records, small FROM (
            SELECT m.seq, CASE WHEN octet_length(m.record) <= most THEN m.record END AS record FROM stored m
            WHERE m.channel = sole AND m.seq > _from AND m.seq <= _upto ORDER BY m.seq LIMIT _limit) f;
    ELSIF cardinality(_channels) <= 64 THEN
        WITH seen AS MATERIALIZED (
            SELECT c.channel, s.seq, s.hash, s.record FROM unnest(_channels) c(channel) CROSS JOIN LATERAL (
                SELECT m.seq, m.hash, m.record FROM stored m
                WHERE m.channel = c.channel AND m.seq > _from AND m.seq <= _upto
                    AND (_after IS NULL OR m.seq > _after[1 + (coalesce(m.hash, m.seq) & 63)])
                    AND (NOT _mixed OR EXISTS (
                        SELECT FROM route r WHERE r.grp = _grp AND r.channel = m.channel AND m.seq BETWEEN r.first AND r.last))
                ORDER BY m.seq LIMIT each) s
        ), bound AS (
            SELECT min(last) AS seq FROM (SELECT max(seq) AS last FROM seen GROUP BY channel HAVING count(*) = each) b
        )
        SELECT array_agg(f.seq), array_agg(f.hash), string_agg(f.record, ''), count(f.record), (SELECT b.seq FROM bound b)
        INTO seqs, hashes, records, small, bound FROM (
            SELECT s.seq, s.hash, CASE WHEN octet_length(s.record) <= most THEN s.record END AS record
            FROM seen s WHERE s.seq <= coalesce((SELECT b.seq FROM bound b), s.seq) ORDER BY s.seq LIMIT _limit) f;
    ELSE
        WITH seen AS MATERIALIZED (
            SELECT m.seq, m.channel, m.hash, m.record FROM stored m WHERE m.seq > _from AND m.seq <= _upto ORDER BY m.seq LIMIT width
        )
        SELECT array_agg(f.seq), array_agg(f.hash), string_agg(f.record, ''), count(f.record),
            (SELECT max(s.seq) FROM seen s HAVING count(*) = width)
        INTO seqs, hashes, records, small, bound FROM (
            SELECT s.seq, s.hash, CASE WHEN octet_length(s.record) <= most THEN s.record END AS record
            FROM seen s WHERE s.channel = ANY (_channels)
                AND (_after IS NULL OR s.seq > _after[1 + (coalesce(s.hash, s.seq) & 63)])
                AND (NOT _mixed OR EXISTS (
                    SELECT FROM route r WHERE r.grp = _grp AND r.channel = s.channel AND s.seq BETWEEN r.first AND r.last))
            ORDER BY s.seq LIMIT _limit) f;
    END IF;
    IF small < cardinality(seqs) THEN  -- some are large: fewer at a time
        SELECT f.seqs, f.hashes, f.records, f.looked, f.more INTO seqs, hashes, records, looked, more
        FROM fresh(_grp, _channels, _from, _upto, greatest(_limit / 8, 1), _after, _mixed) f;
        RETURN;
    END IF;
    IF cardinality(seqs) = _limit THEN
        bound := seqs[_limit];
    END IF;
    more := bound IS NOT NULL;
    looked := coalesce(bound, greatest(_upto, _from));
END $$;

-- The messages of taken rows, whatever became of their partition. Raises when one is gone.
CREATE FUNCTION bodies(_seqs bigint[]) RETURNS bytea LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE records bytea; missing bigint;
BEGIN
    SELECT string_agg(r.record, '' ORDER BY t.n), min(t.seq) FILTER (WHERE r.record IS NULL) INTO records, missing
    FROM unnest(_seqs) WITH ORDINALITY t(seq, n) LEFT JOIN LATERAL (
        SELECT m.record FROM log m WHERE m.seq = t.seq UNION ALL SELECT m.record FROM dead m WHERE m.seq = t.seq
        UNION ALL SELECT m.record FROM kept m WHERE m.seq = t.seq LIMIT 1) r ON true;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'message % is parked, and not in the log', missing USING ERRCODE = 'data_corrupted';
    END IF;
    RETURN records;
END $$;

-- Whether a suspect's holder seems to have died: until that is certain, other suspects wait, for this one comes first.
CREATE FUNCTION missing(_grp int) RETURNS bool LANGUAGE sql AS $$
    SELECT EXISTS (
        SELECT FROM parked p JOIN member m ON m.id = p.member WHERE p.grp = _grp AND p.suspect AND m.missed IS NOT NULL)
$$;

-- Up to `_limit` messages: parked ones that are due (of those whose last holder died at most `_suspects`), then fresh
-- ones, highest priority first, as claim `_claim`. `wait`: until something parked is due.
CREATE FUNCTION claim(
    _grp int, _member int, _claim bigint, _limit int, _suspects int,
    OUT again bigint[], OUT takes int[], OUT failures int[], OUT crashes int[], OUT suspects bool[], OUT parked_records bytea,
    OUT seqs bigint[], OUT records bytea, OUT more bool, OUT wait float8, OUT generation int
) LANGUAGE plpgsql AS $$
DECLARE
    now float8 := unix(); g record; c record; f record; due_soon float8; due_suspect float8;
    room int := _limit; upto bigint; lowest bigint; place bigint; rising bool := true;
BEGIN
    PERFORM soft();
    due_soon := (SELECT min(due) FROM parked WHERE grp = _grp AND NOT suspect AND member IS NULL);
    due_suspect := (SELECT min(due) FROM parked WHERE grp = _grp AND suspect AND member IS NULL);
    IF least(due_soon, due_suspect) <= now THEN
        _suspects := CASE WHEN due_suspect <= now AND NOT missing(_grp) THEN _suspects ELSE 0 END;
        WITH picked AS (
            SELECT seq FROM (
                SELECT seq FROM parked WHERE grp = _grp AND NOT suspect AND member IS NULL AND due <= now
                ORDER BY due, seq LIMIT _limit - _suspects FOR UPDATE SKIP LOCKED) a
            UNION ALL SELECT seq FROM (
                SELECT seq FROM parked WHERE grp = _grp AND suspect AND member IS NULL AND due <= now
                ORDER BY due, seq LIMIT _suspects FOR UPDATE SKIP LOCKED) b
        ), taken AS (
            UPDATE parked p SET member = _member, take = p.take + 1 FROM picked WHERE p.grp = _grp AND p.seq = picked.seq
            RETURNING p.seq, p.take, p.failures, p.crashes, p.suspect
        )
        SELECT array_agg(t.seq ORDER BY seq), array_agg(t.take ORDER BY seq), array_agg(t.failures ORDER BY seq),
            array_agg(t.crashes ORDER BY seq), array_agg(t.suspect ORDER BY seq)
        INTO again, takes, failures, crashes, suspects FROM taken t;
        IF again IS NOT NULL THEN
            parked_records := bodies(again);
            room := _limit - cardinality(again);
        END IF;
        wait := (SELECT min(due) FROM parked WHERE grp = _grp AND member IS NULL AND due > now) - now;
    ELSE
        wait := least(due_soon, due_suspect) - now;
    END IF;
    PERFORM pg_advisory_xact_lock('grp'::regclass::oid::int, _grp);
    SELECT * INTO g FROM grp WHERE id = _grp;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the group was dropped' USING ERRCODE = 'TDG01';
    END IF;
    generation := g.generation;
    more := room = 0;
    IF NOT more THEN
        upto := (SELECT max(m.seq) FROM stored m);
        FOR c IN
            SELECT r.priority, u.seq, array_agg(DISTINCT r.channel) AS channels FROM route r JOIN cursor u USING (grp, priority)
            WHERE r.grp = _grp GROUP BY 1, 2 ORDER BY 1 DESC
        LOOP
            place := c.seq;
            FOR i IN 1..4 LOOP
                IF room = 0 THEN
                    more := true;
                    EXIT;
                END IF;
                SELECT * INTO f FROM fresh(_grp, c.channels, place, upto, room, NULL, g.ended >= 0 OR place < g.mixed);
                place := f.looked;
                IF seqs IS NULL THEN
                    seqs := f.seqs;
                    records := f.records;
                ELSIF f.seqs IS NOT NULL THEN
                    rising := rising AND f.seqs[1] > seqs[cardinality(seqs)];
                    seqs := seqs || f.seqs;
                    records := records || f.records;
                END IF;
                room := room - coalesce(cardinality(f.seqs), 0);
                EXIT WHEN NOT f.more OR octet_length(records) > 16777216;
            END LOOP;
            more := more OR f.more;
            IF place > c.seq AND (seqs IS NOT NULL OR place - c.seq >= 1000 OR g.ended >= 0) THEN
                UPDATE cursor SET seq = place WHERE grp = _grp AND priority = c.priority;
            END IF;
            lowest := least(lowest, place);
            EXIT WHEN more AND (room = 0 OR seqs IS NOT NULL);  -- what has less priority comes later
        END LOOP;
        IF g.ended >= 0 AND lowest >= g.ended AND NOT more THEN
            PERFORM forget(_grp);
        END IF;
        IF seqs IS NOT NULL THEN
            INSERT INTO claim VALUES (
                _claim, _grp, _member, pack(CASE WHEN rising THEN seqs ELSE ARRAY(SELECT s FROM unnest(seqs) s ORDER BY s) END));
        END IF;
    END IF;
END $$;

-- The same in an ordered group, where each of 64 slots (a hash, or without a key the number, & 63) belongs to one
-- member. Of parked messages only the lowest of its key, and nothing of a key in flight (`_flying`); a fresh message
-- whose key has a parked one is parked behind it. A slot is surrendered only when nothing of it is held (`_busy`).
CREATE FUNCTION claim_ordered(
    _grp int, _member int, _claim bigint, _limit int, _suspects int, _busy int[], _flying int[],
    OUT again bigint[], OUT takes int[], OUT failures int[], OUT crashes int[], OUT suspects bool[], OUT parked_records bytea,
    OUT seqs bigint[], OUT hashes int[], OUT records bytea, OUT more bool, OUT wait float8, OUT generation int,
    OUT behind bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    now float8 := unix(); g record; f record; share int; spare int; after bigint[]; place bigint; begun bigint; room int := _limit;
    upto bigint; its int[];
BEGIN
    PERFORM soft();
    PERFORM pg_advisory_xact_lock('grp'::regclass::oid::int, _grp);
    SELECT * INTO g FROM grp WHERE id = _grp;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the group was dropped' USING ERRCODE = 'TDG01';
    END IF;
    generation := g.generation;
    share := (SELECT ceil(64.0 / greatest(count(*), 1)) FROM part WHERE grp = _grp);
    spare := (SELECT count(*) FROM slot WHERE grp = _grp AND member = _member) - share;
    IF spare > 0 THEN
        _busy := _busy || ARRAY(SELECT (coalesce(hash, seq) & 63)::int FROM parked WHERE member = _member AND grp = _grp);
        UPDATE slot s SET member = NULL FROM (
            SELECT slot FROM slot WHERE grp = _grp AND member = _member AND slot <> ALL (_busy) ORDER BY slot LIMIT spare
        ) given WHERE s.grp = _grp AND s.slot = given.slot;
    ELSIF spare < 0 THEN
        UPDATE slot s SET member = _member FROM (
            SELECT slot FROM slot WHERE grp = _grp AND member IS NULL ORDER BY slot LIMIT -spare
        ) free WHERE s.grp = _grp AND s.slot = free.slot;
    END IF;
    SELECT array_agg(CASE WHEN member = _member THEN seq END ORDER BY slot), min(seq) FILTER (WHERE member = _member)
    INTO after, begun FROM slot WHERE grp = _grp;
    place := begun;
    more := false;
    _suspects := CASE WHEN _suspects > 0 AND NOT missing(_grp) THEN _suspects ELSE 0 END;
    WITH free AS (
        SELECT seq, due, suspect, sum(suspect::int) OVER (ORDER BY suspect, due, seq) AS nth FROM parked p
        WHERE grp = _grp AND member IS NULL AND due <= now AND after[1 + (coalesce(hash, seq) & 63)] IS NOT NULL
            AND (hash IS NULL OR (hash <> ALL (_flying)
                AND NOT EXISTS (SELECT FROM parked b WHERE b.grp = _grp AND b.hash = p.hash AND b.seq < p.seq)))
    ), picked AS (
        SELECT seq FROM free WHERE NOT suspect OR nth <= _suspects ORDER BY due, seq LIMIT _limit
    ), taken AS (
        UPDATE parked p SET member = _member, take = p.take + 1 FROM picked
        WHERE p.grp = _grp AND p.seq = picked.seq AND p.member IS NULL
        RETURNING p.seq, p.take, p.failures, p.crashes, p.suspect
    )
    SELECT array_agg(t.seq ORDER BY seq), array_agg(t.take ORDER BY seq), array_agg(t.failures ORDER BY seq),
        array_agg(t.crashes ORDER BY seq), array_agg(t.suspect ORDER BY seq)
    INTO again, takes, failures, crashes, suspects FROM taken t;
    IF again IS NOT NULL THEN
        parked_records := bodies(again);
        room := _limit - cardinality(again);
    END IF;
    wait := (SELECT min(due) FROM parked WHERE grp = _grp AND member IS NULL AND due > now) - now;
    IF room = 0 THEN
        more := true;
        RETURN;
    END IF;
    upto := (SELECT max(m.seq) FROM stored m);
    its := (SELECT array_agg(DISTINCT channel) FROM route WHERE grp = _grp);
    IF begun IS NULL OR its IS NULL THEN
        RETURN;
    END IF;
    FOR i IN 1..4 LOOP
        SELECT * INTO f FROM fresh(_grp, its, place, upto, room, after, g.ended >= 0 OR place < g.mixed);
        place := f.looked;
        EXIT WHEN f.seqs IS NOT NULL OR NOT f.more;
    END LOOP;
    more := f.more;
    seqs := f.seqs;
    hashes := f.hashes;
    records := f.records;
    IF seqs IS NOT NULL OR place - begun >= 1000 OR g.ended >= 0 THEN
        UPDATE slot SET seq = place WHERE grp = _grp AND member = _member AND seq < place;
    END IF;
    IF g.ended >= 0 AND NOT more AND g.ended <= (SELECT min(seq) FROM slot WHERE grp = _grp) THEN
        PERFORM forget(_grp);
    END IF;
    IF seqs IS NOT NULL THEN
        WITH held AS (
            INSERT INTO parked(grp, seq, hash, due)
            SELECT _grp, n.seq, n.hash, now FROM unnest(seqs, hashes) n(seq, hash)
            WHERE hash IS NOT NULL AND EXISTS (SELECT FROM parked p WHERE p.grp = _grp AND p.hash = n.hash)
            ON CONFLICT DO NOTHING RETURNING seq
        )
        SELECT coalesce(array_agg(seq), '{}') INTO behind FROM held;
        place := (SELECT count(*) FROM unnest(seqs) s WHERE s <> ALL (behind));
        IF place > 0 THEN
            INSERT INTO claim VALUES (_claim, _grp, _member, pack(ARRAY(SELECT s FROM unnest(seqs) s WHERE s <> ALL (behind) ORDER BY s)));
        END IF;
    END IF;
END $$;

-- A suspect's handler is about to start: if its process dies now, that is one crash.
CREATE FUNCTION mark(_member int, _grp int, _seq bigint, _take int) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
    UPDATE parked SET running = true WHERE grp = _grp AND seq = _seq AND member = _member AND take = _take;
    RETURN FOUND;
END $$;

-- Held messages go back to their groups: uncounted, or as suspect, and what had been started then as one crash.
CREATE FUNCTION give_back(
    _member int, _claims bigint[], _todos bytea[], _claim_grps int[], _numbers bigint[], _number_grps int[],
    _grps int[], _seqs bigint[], _takes int[], _suspect bool
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE mine bigint[];
BEGIN
    WITH u AS (SELECT * FROM unnest(_claims, _todos) u(id, todo)),
    kept AS (UPDATE claim c SET todo = u.todo FROM u WHERE c.id = u.id AND c.member = _member AND u.todo IS NOT NULL RETURNING c.id),
    gone AS (DELETE FROM claim c USING u WHERE c.id = u.id AND c.member = _member AND u.todo IS NULL RETURNING c.id)
    SELECT array_agg(id) INTO mine FROM (SELECT id FROM kept UNION ALL SELECT id FROM gone) k;
    PERFORM park(n.grp, n.seq, _suspect) FROM unnest(_number_grps, _numbers, _claim_grps) n(grp, seq, claim)
    WHERE _claims[n.claim] = ANY (mine);
    UPDATE parked p SET member = NULL, crashes = p.crashes + (p.running AND _suspect)::int, running = false, suspect = _suspect
    FROM unnest(_grps, _seqs, _takes) t(grp, seq, take)
    WHERE p.grp = t.grp AND p.seq = t.seq AND p.member = _member AND p.take = t.take;
END $$;

-- A row of its own for a message of the log, due now.
CREATE FUNCTION park(_grp int, _seq bigint, _suspect bool) RETURNS void LANGUAGE sql AS $$
    INSERT INTO parked(grp, seq, hash, due, suspect)
    SELECT _grp, _seq, (SELECT m.hash FROM stored m WHERE m.seq = _seq), unix(), _suspect ON CONFLICT DO NOTHING
$$;

-- What this member holds of a group and does not know of, for an answer was lost: back to the group, uncounted.
CREATE FUNCTION resync(_member int, _grp int, _claims bigint[], _seqs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE c record;
BEGIN
    FOR c IN DELETE FROM claim WHERE member = _member AND grp = _grp AND id <> ALL (_claims) RETURNING todo LOOP
        PERFORM park(_grp, u.seq, false) FROM unpack(c.todo) u(seq);
    END LOOP;
    UPDATE parked SET member = NULL WHERE member = _member AND grp = _grp AND seq <> ALL (_seqs);
END $$;

-- For a live copy: what came since, of some channels; `newest`: a channel the caller does not know may have come between.
CREATE FUNCTION live(
    _channels int[], _from bigint, _limit int, OUT seqs bigint[], OUT records bytea, OUT looked bigint, OUT more bool, OUT newest int
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT f.seqs, f.records, f.looked, f.more INTO seqs, records, looked, more
    FROM fresh(0, _channels, _from, (SELECT max(m.seq) FROM stored m), _limit, NULL, false) f;
    newest := (SELECT max(id) FROM channel);
END $$;

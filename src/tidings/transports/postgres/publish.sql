-- Storing: numbers, partitions, what was delayed.

CREATE FUNCTION unix() RETURNS float8 LANGUAGE sql VOLATILE AS 'SELECT extract(epoch FROM clock_timestamp())::float8';

-- Until the end of the transaction nobody else numbers messages, makes channels or changes what groups read.
CREATE FUNCTION numbering() RETURNS void LANGUAGE sql VOLATILE AS
    $$ SELECT pg_advisory_xact_lock('log'::regclass::oid::int, 0) $$;

-- This transaction may be lost with the server: whatever it did would only be done again.
CREATE FUNCTION soft() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
END $$;

CREATE FUNCTION grow(_rows bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE begun bigint; number int;
BEGIN
    SELECT coalesce(max(last), 0) + 1, coalesce(max(n), 0) + 1 INTO begun, number FROM segment;
    EXECUTE format('CREATE TABLE log_%s (LIKE log INCLUDING DEFAULTS INCLUDING STORAGE)', number);
    EXECUTE format('ALTER TABLE log ATTACH PARTITION log_%s FOR VALUES FROM (%s) TO (%s)', number, begun, begun + _rows);
    INSERT INTO segment VALUES (number, begun, begun + _rows - 1, unix());
END $$;

-- The highest number there is. Only while numbering, or as a hint.
CREATE FUNCTION head() RETURNS bigint LANGUAGE sql AS $$ SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM seq $$;

-- The same, after making sure that so many more messages have a partition. Only while numbering.
CREATE FUNCTION room(_count int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE reach bigint; width bigint; used bigint;
BEGIN
    SELECT last, last - first + 1 INTO reach, width FROM segment ORDER BY n DESC LIMIT 1;
    SELECT CASE WHEN is_called THEN last_value ELSE 0 END INTO used FROM seq;
    WHILE used + _count > reach LOOP
        PERFORM grow(width);
        reach := reach + width;
    END LOOP;
    RETURN used;
END $$;

-- Channels by topic and priority, new ones with the groups that read them.
CREATE FUNCTION channels(_topics text[], _priorities smallint[]) RETURNS int[] LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM unnest(_topics, _priorities) w(topic, priority) LEFT JOIN channel c USING (topic, priority) WHERE c.id IS NULL
    ) THEN
        PERFORM numbering();
        WITH new AS (
            INSERT INTO channel(topic, priority)
            SELECT DISTINCT topic, priority FROM unnest(_topics, _priorities) w(topic, priority) ON CONFLICT DO NOTHING
            RETURNING id, topic, priority
        ), found AS (
            SELECT p.grp, new.id, new.priority, p.first, p.last FROM new JOIN pattern p ON p.pattern = new.topic
            WHERE p.matcher IS NULL
            UNION ALL
            SELECT p.grp, new.id, new.priority, p.first, p.last
            FROM new JOIN pattern p ON new.topic LIKE p.near AND new.topic ~ p.matcher
        )
        INSERT INTO route SELECT f.grp, CASE WHEN g.ordered THEN 0 ELSE f.priority END, f.id, f.first, max(f.last)
        FROM found f JOIN grp g ON g.id = f.grp GROUP BY 1, 2, 3, 4;
    END IF;
    RETURN ARRAY(
        SELECT c.id FROM unnest(_topics, _priorities) WITH ORDINALITY w(topic, priority, n) JOIN channel c USING (topic, priority)
        ORDER BY n);
END $$;

-- Store messages; those of `_dead` channels outside retention. Answers the channels that no group reads. `_names`: all
-- there are; with one, `_channels` is NULL; so are `_dues` and `_hashes` when none has any. A message's record is the
-- part of `_records` that its start and its length say: one value is cheaper to send and to read than an array.
CREATE FUNCTION store(
    _names int[], _channels int[], _dues float8[], _hashes int[], _starts int[], _lengths int[], _records bytea, _dead int[]
) RETURNS int[] LANGUAGE plpgsql AS $$
DECLARE now float8; used bigint; sole int := _names[1]; n int := cardinality(_starts);
BEGIN
    PERFORM numbering();
    now := unix();
    used := room(n);
    IF _dues IS NOT NULL THEN
        INSERT INTO delayed(due, topic, priority, hash, record)
        SELECT r.due, c.topic, c.priority, r.hash, substring(_records, r.start, r.length)
        FROM unnest(_channels, _dues, _hashes, _starts, _lengths) r(channel, due, hash, start, length)
        JOIN channel c ON c.id = coalesce(r.channel, sole) WHERE r.due > now;
        SELECT array_agg(coalesce(channel, sole)), array_agg(hash), array_agg(start), array_agg(length), count(*)
        INTO _channels, _hashes, _starts, _lengths, n
        FROM unnest(_channels, _dues, _hashes, _starts, _lengths) r(channel, due, hash, start, length) WHERE due IS NULL OR due <= now;
    END IF;
    PERFORM setval('seq', used + n) WHERE n > 0;
    IF _channels IS NULL AND sole <> ALL (_dead) THEN
        INSERT INTO log SELECT used + r.n, sole, r.hash, now, substring(_records, r.start, r.length)
        FROM unnest(_hashes, _starts, _lengths) WITH ORDINALITY r(hash, start, length, n);
    ELSE
        INSERT INTO log SELECT used + r.n, r.channel, r.hash, now, substring(_records, r.start, r.length)
        FROM unnest(_channels, _hashes, _starts, _lengths) WITH ORDINALITY r(channel, hash, start, length, n)
        WHERE channel <> ALL (_dead);
        INSERT INTO dead SELECT used + r.n, coalesce(r.channel, sole), r.hash, now, substring(_records, r.start, r.length)
        FROM unnest(_channels, _hashes, _starts, _lengths) WITH ORDINALITY r(channel, hash, start, length, n)
        WHERE cardinality(_dead) > 0 AND coalesce(channel, sole) = ANY (_dead);
    END IF;
    RETURN ARRAY(
        SELECT channel FROM unnest(_names) c(channel)
        WHERE NOT EXISTS (SELECT FROM route r WHERE r.channel = c.channel AND r.last >= 4611686018427387904));
END $$;

-- What is due enters the log, in the order of dues; true: perhaps there is more.
CREATE FUNCTION move() RETURNS bool LANGUAGE plpgsql AS $$
DECLARE now float8 := unix(); due_now record;
BEGIN
    IF NOT EXISTS (SELECT FROM delayed WHERE due <= now) THEN
        RETURN false;
    END IF;
    PERFORM soft();
    PERFORM numbering();
    WITH gone AS (
        DELETE FROM delayed d USING (SELECT due, n FROM delayed WHERE due <= now ORDER BY due, n LIMIT 1000) m
        WHERE d.due = m.due AND d.n = m.n RETURNING d.*
    )
    SELECT count(*) AS count, array_agg(topic ORDER BY due, n) AS topics, array_agg(priority ORDER BY due, n) AS priorities,
        array_agg(hash ORDER BY due, n) AS hashes, array_agg(stop - length + 1 ORDER BY due, n) AS starts,
        array_agg(length ORDER BY due, n) AS lengths, string_agg(record, '' ORDER BY due, n) AS records INTO due_now
    FROM (
        SELECT gone.*, octet_length(record) AS length, (sum(octet_length(record)) OVER (ORDER BY due, n))::int AS stop FROM gone
    ) g;
    IF due_now.count > 0 THEN
        PERFORM store(
            ARRAY(SELECT DISTINCT unnest(c.ids)), c.ids, NULL, due_now.hashes, due_now.starts, due_now.lengths, due_now.records,
            ARRAY(SELECT id FROM channel WHERE id = ANY (c.ids) AND topic LIKE '\_dead.%'))
        FROM (SELECT channels(due_now.topics, due_now.priorities) AS ids) c;
    END IF;
    RETURN due_now.count = 1000;
END $$;

-- How many numbers these are.
CREATE FUNCTION count_of(_todo bytea) RETURNS int LANGUAGE sql IMMUTABLE AS
    $$ SELECT (octet_length(_todo) - 9) / CASE get_byte(_todo, 8) WHEN 66 THEN 1 WHEN 73 THEN 4 ELSE 8 END + 1 $$;

-- Strike settled numbers off claims: what is left of each, NULL: nothing. Answers of each whether it was ours.
-- `_befores`: so many it had. One that has fewer was struck before, and the answer was lost: refused. One that has more
-- was struck by a commit that was lost with the server: struck again.
CREATE FUNCTION strike(_member int, _claims bigint[], _todos bytea[], _befores int[]) RETURNS bool[] LANGUAGE plpgsql AS $$
DECLARE mine bigint[];
BEGIN
    IF cardinality(_claims) = 1 AND _todos[1] IS NULL THEN
        DELETE FROM claim WHERE id = _claims[1] AND member = _member AND count_of(todo) >= _befores[1];
        RETURN ARRAY[FOUND];
    END IF;
    WITH u AS (SELECT * FROM unnest(_claims, _todos, _befores) u(id, todo, before)),
    kept AS (
        UPDATE claim c SET todo = u.todo FROM u
        WHERE c.id = u.id AND c.member = _member AND u.todo IS NOT NULL AND count_of(c.todo) >= u.before RETURNING c.id
    ), gone AS (
        DELETE FROM claim c USING u
        WHERE c.id = u.id AND c.member = _member AND u.todo IS NULL AND count_of(c.todo) >= u.before RETURNING c.id
    )
    SELECT array_agg(id) INTO mine FROM (SELECT id FROM kept UNION ALL SELECT id FROM gone) k;
    RETURN ARRAY(SELECT coalesce(c.id = ANY (mine), false) FROM unnest(_claims) WITH ORDINALITY c(id, n) ORDER BY n);
END $$;

-- A batch that only acknowledges fresh messages.
CREATE FUNCTION acked(_member int, _claims bigint[], _todos bytea[], _befores int[], OUT ok bool[], OUT unrouted int[], OUT stored bigint)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    ok := strike(_member, _claims, _todos, _befores);
    unrouted := '{}';
END $$;

-- One batch of a process's writer: settle, park, publish; what is no longer ours is skipped together with its outputs.
-- `ok` says of each claim and then of each taken message whether it was ours; *_ref are places in it, from 1; 0, or no
-- `_ref` at all: always.
CREATE FUNCTION apply(
    _member int, _claims bigint[], _todos bytea[], _befores int[], _grps int[], _seqs bigint[], _takes int[],
    _park_ref int[], _park_grp int[], _park_seq bigint[], _park_hash int[], _park_delay float8[], _park_failures int[],
    _park_crashes int[], _park_take int[], _park_why text[],
    _ref int[], _names int[], _channels int[], _dues float8[], _hashes int[], _starts int[], _lengths int[], _records bytea,
    _dead int[], _synchronous text, OUT ok bool[], OUT unrouted int[], OUT stored bigint
) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', _synchronous, true) WHERE _synchronous <> '';
    ok := '{}';
    IF cardinality(_claims) > 0 THEN
        ok := strike(_member, _claims, _todos, _befores);
    END IF;
    IF cardinality(_seqs) > 0 THEN
        WITH gone AS (
            DELETE FROM parked p USING unnest(_grps, _seqs, _takes) t(grp, seq, take)
            WHERE p.grp = t.grp AND p.seq = t.seq AND p.member = _member AND p.take = t.take RETURNING p.grp, p.seq
        )
        SELECT ok || array_agg(g.seq IS NOT NULL ORDER BY n) INTO ok
        FROM unnest(_grps, _seqs) WITH ORDINALITY t(grp, seq, n) LEFT JOIN gone g USING (grp, seq);
    END IF;
    IF cardinality(_park_ref) > 0 THEN
        INSERT INTO parked(grp, seq, hash, due, failures, crashes, take, why)
        SELECT grp, seq, hash, unix() + delay, failures, crashes, take, why
        FROM unnest(
            _park_ref, _park_grp, _park_seq, _park_hash, _park_delay, _park_failures, _park_crashes, _park_take, _park_why
        ) p(ref, grp, seq, hash, delay, failures, crashes, take, why) WHERE ok[ref] ON CONFLICT DO NOTHING;
    END IF;
    IF false = ANY (ok) AND _ref IS NOT NULL THEN
        SELECT array_agg(coalesce(channel, _names[1])), array_agg(due), array_agg(hash), array_agg(start), array_agg(length)
        INTO _channels, _dues, _hashes, _starts, _lengths
        FROM unnest(_ref, _channels, _dues, _hashes, _starts, _lengths) r(ref, channel, due, hash, start, length)
        WHERE ref = 0 OR ok[ref];
    END IF;
    unrouted := '{}';
    IF cardinality(_starts) > 0 THEN
        unrouted := store(_names, _channels, _dues, _hashes, _starts, _lengths, _records, _dead);
        stored := (SELECT max(m.seq) FROM stored m);
    END IF;
END $$;

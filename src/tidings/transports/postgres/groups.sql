-- Members and groups: who is there, who reads what, from where.

CREATE FUNCTION enter(_about text, _lease float8, _groups int[]) RETURNS int LANGUAGE plpgsql AS $$
DECLARE new int;
BEGIN
    INSERT INTO member(about, lease, beat) VALUES (_about, _lease, unix()) RETURNING id INTO new;
    INSERT INTO part SELECT id, new FROM grp WHERE id = ANY (_groups);
    RETURN new;
END $$;

-- This connection is the member's presence: when it ends, so has the member, unless it appears again soon.
CREATE FUNCTION appear(_member int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_lock('member'::regclass::oid::int, _member);
    UPDATE member SET present = true, missed = NULL WHERE id = _member;
END $$;

-- The member was alive just now; which of its claims the database knows, and whether it knows the member. `strays`: groups
-- of which the member holds more than it says: an answer is still on its way, or the server lost what settled it.
CREATE FUNCTION beat(
    _member int, _claims bigint[], _grps int[], _seqs bigint[], OUT known bool, OUT lost bigint[], OUT strays int[]
) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM soft();
    UPDATE member SET beat = unix() WHERE id = _member;
    known := FOUND;
    UPDATE grp SET seen = unix() WHERE seen < unix() - 3600 AND id IN (SELECT grp FROM part WHERE member = _member);
    lost := ARRAY(SELECT id FROM unnest(_claims) c(id) WHERE NOT EXISTS (SELECT FROM claim k WHERE k.id = c.id AND k.member = _member));
    strays := ARRAY(
        SELECT grp FROM claim WHERE member = _member AND id <> ALL (_claims)
        UNION SELECT grp FROM parked p WHERE member = _member
            AND NOT EXISTS (SELECT FROM unnest(_grps, _seqs) t(grp, seq) WHERE t.grp = p.grp AND t.seq = p.seq));
END $$;

-- What lost members held is parked as suspect, a mark they left is one crash, their slots are free. Lost is who is silent
-- for its lease, or whose presence ended more than two seconds ago. Answers how many messages came back, and whose.
CREATE FUNCTION expire(_wait bool, OUT count int, OUT groups int[]) LANGUAGE plpgsql AS $$
DECLARE m record; now float8 := unix(); n int; born float8 := extract(epoch FROM pg_postmaster_start_time());
BEGIN
    count := 0;
    groups := '{}';
    IF _wait THEN
        PERFORM pg_advisory_xact_lock('member'::regclass::oid::int, 0);
    ELSIF NOT pg_try_advisory_xact_lock('member'::regclass::oid::int, 0) THEN
        RETURN;
    END IF;
    FOR m IN SELECT * FROM member LOOP
        IF m.present AND pg_try_advisory_xact_lock_shared('member'::regclass::oid::int, m.id) THEN
            IF m.missed IS NULL THEN
                UPDATE member SET missed = now WHERE id = m.id;
            END IF;
        ELSIF m.missed IS NOT NULL THEN
            UPDATE member SET missed = NULL WHERE id = m.id;
        END IF;
        -- when the server has just started, everybody is on the way back
        DELETE FROM member WHERE id = m.id AND (beat < now - lease OR (missed IS NOT NULL AND greatest(missed, born + 3) < now - 2));
    END LOOP;
    IF NOT EXISTS (SELECT FROM claim c WHERE NOT EXISTS (SELECT FROM member WHERE id = c.member))
        AND NOT EXISTS (SELECT FROM parked p WHERE member IS NOT NULL AND NOT EXISTS (SELECT FROM member WHERE id = p.member))
        AND NOT EXISTS (SELECT FROM part p WHERE NOT EXISTS (SELECT FROM member WHERE id = p.member))
        AND NOT EXISTS (SELECT FROM slot s WHERE member IS NOT NULL AND NOT EXISTS (SELECT FROM member WHERE id = s.member)) THEN
        RETURN;
    END IF;
    FOR m IN DELETE FROM claim c WHERE NOT EXISTS (SELECT FROM member WHERE id = c.member) RETURNING grp, todo LOOP
        PERFORM park(m.grp, u.seq, true) FROM unpack(m.todo) u(seq);
        GET DIAGNOSTICS n = ROW_COUNT;
        count := count + n;
        groups := groups || m.grp;
    END LOOP;
    WITH back AS (
        UPDATE parked p SET crashes = crashes + running::int, running = false, suspect = true, member = NULL
        WHERE member IS NOT NULL AND NOT EXISTS (SELECT FROM member WHERE id = p.member) RETURNING grp
    )
    SELECT count + count(*), groups || coalesce(array_agg(DISTINCT grp), '{}') INTO count, groups FROM back;
    WITH free AS (
        UPDATE slot s SET member = NULL WHERE member IS NOT NULL AND NOT EXISTS (SELECT FROM member WHERE id = s.member) RETURNING grp
    ), left_ AS (
        DELETE FROM part p WHERE NOT EXISTS (SELECT FROM member WHERE id = p.member) RETURNING grp
    )
    SELECT groups || coalesce(array_agg(DISTINCT grp), '{}') INTO groups FROM (SELECT grp FROM free UNION SELECT grp FROM left_) f;
END $$;

-- Between times: expire, and which groups have something parked to hand out, or slots that nobody has.
CREATE FUNCTION look(_groups int[], OUT count int, OUT groups int[], OUT waiting int[]) LANGUAGE plpgsql AS $$
DECLARE now float8 := unix();
BEGIN
    PERFORM soft();
    SELECT e.count, e.groups INTO count, groups FROM expire(false) e;
    waiting := ARRAY(
        SELECT g.id FROM unnest(_groups) g(id) WHERE
            EXISTS (SELECT FROM parked WHERE grp = g.id AND NOT suspect AND member IS NULL AND due <= now)
            OR EXISTS (SELECT FROM parked WHERE grp = g.id AND suspect AND member IS NULL AND due <= now)
            OR EXISTS (SELECT FROM slot WHERE grp = g.id AND member IS NULL));
END $$;

-- What the log got beyond a number, as channels (NULL: too much to name); when something delayed is due, in seconds.
-- `seen` is lower than `_seen` only if the server lost numbers.
CREATE FUNCTION news(_seen bigint, _known int, OUT seen bigint, OUT channels int[], OUT due float8, OUT new json)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    seen := least(greatest(_seen, (SELECT max(m.seq) FROM stored m)), head());
    IF seen <= _seen THEN
        channels := '{}';
    ELSIF (SELECT count(*) FROM (SELECT FROM channel LIMIT 65) c) <= 64 THEN
        channels := ARRAY(
            SELECT c.id FROM channel c
            WHERE EXISTS (SELECT FROM stored m WHERE m.channel = c.id AND m.seq > _seen AND m.seq <= news.seen));
    ELSE
        SELECT CASE WHEN count(*) <= 20000 THEN array_agg(DISTINCT s.channel) END INTO channels
        FROM (SELECT m.channel FROM stored m WHERE m.seq > _seen AND m.seq <= news.seen ORDER BY m.seq LIMIT 20001) s;
    END IF;
    due := (SELECT min(d.due) FROM delayed d) - unix();
    new := (SELECT json_agg(json_build_array(id, topic, priority)) FROM channel WHERE id > _known);
END $$;

-- The first number of what was stored at or after a time, dead letters included.
CREATE FUNCTION first_at(_at float8) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE low bigint := (SELECT min(seq) FROM log); high bigint := head() + 1; middle bigint; its float8;
BEGIN
    IF _at <= 0 THEN
        RETURN 1;
    END IF;
    WHILE low < high LOOP
        middle := (low + high) / 2;
        SELECT at INTO its FROM log WHERE seq >= middle ORDER BY seq LIMIT 1;
        IF FOUND AND its < _at THEN
            low := middle + 1;
        ELSE
            high := middle;
        END IF;
    END LOOP;
    RETURN least(high, (SELECT min(seq) FROM dead WHERE at >= _at));
END $$;

-- Put a group's cursors, or slots, to a number.
CREATE FUNCTION place(_grp int, _ordered bool, _seq bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF _ordered THEN
        INSERT INTO slot(grp, slot, seq) SELECT _grp, n, _seq FROM generate_series(0, 63) n
        ON CONFLICT (grp, slot) DO UPDATE SET seq = excluded.seq;
    ELSE
        INSERT INTO cursor SELECT _grp, n, _seq FROM generate_series(0, 9) n
        ON CONFLICT (grp, priority) DO UPDATE SET seq = excluded.seq;
    END IF;
END $$;

-- What the group reads has changed. Only while numbering.
CREATE FUNCTION renew(_grp int) RETURNS void LANGUAGE sql AS $$
    DELETE FROM route WHERE grp = _grp;
    INSERT INTO route -- a topic may be read by its name and by a pattern from the same number on
    SELECT grp, priority, channel, first, max(last) FROM (
        SELECT p.grp, CASE WHEN g.ordered THEN 0 ELSE c.priority END AS priority, c.id AS channel, p.first, p.last
        FROM pattern p JOIN grp g ON g.id = p.grp JOIN channel c ON c.topic = p.pattern
        WHERE p.grp = _grp AND p.matcher IS NULL
        UNION ALL
        SELECT p.grp, CASE WHEN g.ordered THEN 0 ELSE c.priority END, c.id, p.first, p.last
        FROM pattern p JOIN grp g ON g.id = p.grp JOIN channel c ON c.topic LIKE p.near AND c.topic ~ p.matcher
        WHERE p.grp = _grp AND p.matcher IS NOT NULL) every GROUP BY 1, 2, 3, 4;
    UPDATE grp SET generation = generation + 1,
        ended = (SELECT coalesce(max(last) FILTER (WHERE last < 4611686018427387904), -1) FROM pattern WHERE grp = _grp),
        mixed = (SELECT max(greatest(first - 1, CASE WHEN last < 4611686018427387904 THEN last ELSE 0 END)) FROM pattern WHERE grp = _grp)
    WHERE id = _grp;
$$;

-- Patterns that were replaced, once all they match was handed out.
CREATE FUNCTION forget(_grp int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM numbering();
    DELETE FROM pattern WHERE grp = _grp AND last < 4611686018427387904;
    PERFORM renew(_grp);
END $$;

-- A group with its start position, and a member of it. The last registration wins. A group's private address is read
-- from its beginning.
CREATE FUNCTION register(
    _member int, _name text, _app text, _pattern text, _near text, _matcher text, _start float8, _ordered bool
) RETURNS int LANGUAGE plpgsql AS $$
DECLARE g record; begun bigint; now float8 := unix(); ever bigint := 4611686018427387904;
BEGIN
    PERFORM expire(true);
    PERFORM numbering();
    SELECT * INTO g FROM grp WHERE name = _name;
    IF NOT FOUND THEN
        begun := CASE WHEN _start IS NULL THEN head() + 1 ELSE first_at(_start) END;
        INSERT INTO grp(name, app, ordered, seen) VALUES (_name, _app, _ordered, now) RETURNING * INTO g;
        INSERT INTO pattern VALUES (g.id, _pattern, _near, _matcher, begun, ever), (g.id, '_group.' || _name, NULL, NULL, 0, ever);
        PERFORM place(g.id, _ordered, begun - 1);
        PERFORM renew(g.id);
        INSERT INTO parked(grp, seq, hash, due)
        SELECT g.id, s.seq, s.hash, now FROM channel c JOIN stored s ON s.channel = c.id
        WHERE c.topic = '_group.' || _name AND s.seq < begun;
    ELSE
        PERFORM pg_advisory_xact_lock('grp'::regclass::oid::int, g.id);
        IF g.ordered <> _ordered THEN
            SELECT min(seq) INTO begun FROM (
                SELECT seq FROM slot WHERE grp = g.id
                UNION ALL SELECT seq FROM cursor WHERE grp = g.id AND priority IN (SELECT priority FROM route WHERE grp = g.id)) p;
            DELETE FROM cursor WHERE grp = g.id;
            DELETE FROM slot WHERE grp = g.id;
            UPDATE grp SET ordered = _ordered WHERE id = g.id;
            PERFORM place(g.id, _ordered, coalesce(begun, head()));
            PERFORM renew(g.id);
        END IF;
        IF NOT EXISTS (SELECT FROM pattern WHERE grp = g.id AND last = ever AND pattern = _pattern) THEN
            UPDATE pattern SET last = head() WHERE grp = g.id AND last = ever AND pattern NOT LIKE '\_group.%';
            INSERT INTO pattern VALUES (g.id, _pattern, _near, _matcher, head() + 1, ever);
            PERFORM renew(g.id);
        END IF;
    END IF;
    UPDATE grp SET app = _app, seen = now WHERE id = g.id;
    INSERT INTO part VALUES (g.id, _member) ON CONFLICT DO NOTHING;
    RETURN g.id;
END $$;

-- This member no longer consumes the group.
CREATE FUNCTION quit(_member int, _grp int) RETURNS void LANGUAGE sql AS $$
    DELETE FROM part WHERE grp = _grp AND member = _member;
    UPDATE slot SET member = NULL WHERE grp = _grp AND member = _member;
    UPDATE grp SET seen = unix() WHERE id = _grp;
$$;

-- The member is gone, of its own will.
CREATE FUNCTION depart(_member int) RETURNS void LANGUAGE sql AS $$
    UPDATE slot SET member = NULL WHERE member = _member;
    DELETE FROM part WHERE member = _member;
    DELETE FROM member WHERE id = _member;
$$;

-- Which of these topics nobody would receive now.
CREATE FUNCTION unanswered(_topics text[]) RETURNS text[] LANGUAGE plpgsql AS $$
BEGIN
    PERFORM expire(true);
    RETURN ARRAY(
        SELECT topic FROM unnest(_topics) topic WHERE NOT EXISTS (
            SELECT FROM pattern p WHERE last = 4611686018427387904 AND (pattern = topic OR (topic LIKE near AND topic ~ matcher))
                AND EXISTS (SELECT FROM part WHERE grp = p.grp)));
END $$;

CREATE FUNCTION tick(_name text, _due float8) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tick VALUES (_name, _due) ON CONFLICT (name) DO UPDATE SET due = excluded.due WHERE excluded.due > tick.due;
    RETURN FOUND;
END $$;

-- -- mending: raises TDG02 for no such group, TDG03 for one at work, TDG04 for a name that is taken

CREATE FUNCTION at_rest(_name text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE its int;
BEGIN
    PERFORM expire(true);
    PERFORM numbering();
    SELECT id INTO its FROM grp WHERE name = _name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no group %', _name USING ERRCODE = 'TDG02';
    END IF;
    IF EXISTS (SELECT FROM part WHERE grp = its) THEN
        RAISE EXCEPTION 'group % has members at work', _name USING ERRCODE = 'TDG03';
    END IF;
    RETURN its;
END $$;

-- It still answers to the old name: dead letters of before are replayed there.
CREATE FUNCTION rename(_name text, _to text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE id_ int := at_rest(_name);
BEGIN
    IF EXISTS (SELECT FROM grp WHERE name = _to) THEN
        RAISE EXCEPTION 'group % exists', _to USING ERRCODE = 'TDG04';
    END IF;
    UPDATE grp SET name = _to WHERE id = id_;
    INSERT INTO pattern VALUES (id_, '_group.' || _to, NULL, NULL, 0, 4611686018427387904);
    PERFORM renew(id_);
END $$;

CREATE FUNCTION drop_group(_name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE id_ int := at_rest(_name);
BEGIN
    DELETE FROM route WHERE grp = id_;
    DELETE FROM pattern WHERE grp = id_;
    DELETE FROM cursor WHERE grp = id_;
    DELETE FROM slot WHERE grp = id_;
    DELETE FROM claim WHERE grp = id_;
    DELETE FROM parked WHERE grp = id_;
    DELETE FROM grp WHERE id = id_;
END $$;

-- Replay. What was parked comes again with the rest.
CREATE FUNCTION seek(_name text, _start float8) RETURNS void LANGUAGE plpgsql AS $$
DECLARE id_ int := at_rest(_name); begun bigint := first_at(_start); retained bigint;
BEGIN
    UPDATE pattern SET first = least(first, begun) WHERE grp = id_;
    PERFORM place(id_, (SELECT ordered FROM grp WHERE id = id_), begun - 1);
    PERFORM renew(id_);
    retained := greatest(begun, (SELECT min(first) FROM segment));
    DELETE FROM parked p USING stored s
    WHERE p.grp = id_ AND p.seq >= retained AND s.seq = p.seq
        AND EXISTS (SELECT FROM route r WHERE r.grp = id_ AND r.channel = s.channel AND s.seq BETWEEN r.first AND r.last);
    UPDATE parked SET failures = 0, due = unix() WHERE grp = id_ AND seq >= retained;
END $$;

-- What a group reads now.
CREATE FUNCTION patterns(_grp int) RETURNS text[] LANGUAGE sql AS
    $$ SELECT array_agg(pattern) FROM pattern WHERE grp = _grp AND last = 4611686018427387904 $$;

CREATE FUNCTION names() RETURNS text[] LANGUAGE sql AS $$ SELECT coalesce(array_agg(name ORDER BY name), '{}') FROM grp $$;

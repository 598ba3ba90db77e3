-- What handlers keep (store.py), by table and key, in the order of their bytes; `due` orders those that have one.
-- `expect`: the version that a write found missing, 0: none; without meaning once it is written over.
-- A schema of an earlier release gets this when a newer one opens it; an older one does not mind.
CREATE TABLE records(
    tbl text COLLATE "C", key text COLLATE "C", version bigint NOT NULL, due float8, expect bigint, value bytea,
    PRIMARY KEY (tbl, key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);
CREATE INDEX records_due ON records(tbl, due, key) WHERE due IS NOT NULL;

-- Write records, removing those whose size is -1. Answers how many were as expected: if not all, raise and so undo it.
-- They come by table and key, and each is locked, or made, in this order, so two transactions cannot wait for each other.
-- What is removed is made empty first: it is locked in its turn, too.
CREATE FUNCTION put(
    _tables text[], _table int[], _keys text[], _expects bigint[], _versions bigint[], _times float8[],
    _starts int[], _sizes int[], _values bytea
) RETURNS int LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE fine int;
BEGIN
    WITH written AS (
        INSERT INTO records AS r (tbl, key, version, due, expect, value)
        SELECT _tables[w.place], w.key, w.version, w.due, w.expect, CASE WHEN w.size >= 0 THEN substring(_values, w.start, w.size) END
        FROM unnest(_table, _keys, _expects, _versions, _times, _starts, _sizes) w(place, key, expect, version, due, start, size)
        ON CONFLICT (tbl, key) DO UPDATE SET version = excluded.version, value = excluded.value, expect = NULL,
            due = CASE WHEN excluded.value IS NULL THEN r.due ELSE excluded.due END
        WHERE excluded.expect IS NULL OR excluded.expect = r.version
        RETURNING r.expect
    )
    SELECT count(*) INTO fine FROM written WHERE expect IS NULL OR expect = 0;
    IF -1 = ANY (_sizes) THEN
        DELETE FROM records r USING unnest(_table, _keys, _sizes) w(place, key, size)
        WHERE w.size = -1 AND r.tbl = _tables[w.place] AND r.key = w.key;
    END IF;
    RETURN fine;
END $$;

-- Records that are not as expected: their places, and the versions they have.
CREATE FUNCTION unexpected(_tables text[], _table int[], _keys text[], _expects bigint[], OUT places int[], OUT versions bigint[])
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
BEGIN
    SELECT array_agg(w.n::int), array_agg(coalesce(r.version, 0)) INTO places, versions
    FROM unnest(_table, _keys, _expects) WITH ORDINALITY w(place, key, expect, n)
    LEFT JOIN records r ON r.tbl = _tables[w.place] AND r.key = w.key WHERE w.expect <> coalesce(r.version, 0);
END $$;

-- One batch of a process's writer in which there are units: `apply` and `put`, all of it or (not `done`) nothing. Then a
-- claim or taken message was not ours (`ok`), or records are not as expected: `stale` has their places, `versions` what
-- they have now. Where neither says anything, somebody was at work: again.
CREATE FUNCTION keep(
    _member int, _claims bigint[], _todos bytea[], _befores int[], _grps int[], _seqs bigint[], _takes int[],
    _park_ref int[], _park_grp int[], _park_seq bigint[], _park_hash int[], _park_delay float8[], _park_failures int[],
    _park_crashes int[], _park_take int[], _park_why text[],
    _ref int[], _names int[], _channels int[], _dues float8[], _hashes int[], _starts int[], _lengths int[], _records bytea,
    _dead int[], _synchronous text,
    _tables text[], _table int[], _keys text[], _expects bigint[], _versions bigint[], _times float8[],
    _begins int[], _sizes int[], _values bytea,
    OUT ok bool[], OUT unrouted int[], OUT stored bigint, OUT done bool, OUT stale int[], OUT versions bigint[]
) LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        SELECT a.ok, a.unrouted INTO ok, unrouted FROM apply(
            _member, _claims, _todos, _befores, _grps, _seqs, _takes,
            _park_ref, _park_grp, _park_seq, _park_hash, _park_delay, _park_failures, _park_crashes, _park_take, _park_why,
            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, _synchronous) a;
        IF false = ANY (ok) THEN
            RAISE SQLSTATE 'TDG05';
        ELSIF cardinality(_keys) > put(_tables, _table, _keys, _expects, _versions, _times, _begins, _sizes, _values) THEN
            RAISE SQLSTATE 'TDG05';
        ELSIF cardinality(_starts) > 0 THEN
            unrouted := store(_names, _channels, _dues, _hashes, _starts, _lengths, _records, _dead);
            stored := (SELECT max(m.seq) FROM stored m);
        END IF;
        done := true;
    EXCEPTION WHEN SQLSTATE 'TDG05' THEN
        done := false;
        SELECT u.places, u.versions INTO stale, versions FROM unexpected(_tables, _table, _keys, _expects) u;
    END;
END $$;

-- Reading. `n`: the place of what was asked for.
CREATE FUNCTION records_of(_tables text[], _table int[], _keys text[])
RETURNS TABLE(n int, key text, value bytea, version bigint, due float8) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
BEGIN
    RETURN QUERY SELECT w.n::int, r.key, r.value, r.version, r.due
        FROM unnest(_table, _keys) WITH ORDINALITY w(place, key, n) JOIN records r ON r.tbl = _tables[w.place] AND r.key = w.key;
END $$;

-- From `_from` on and beyond `_after`; `_below`: the end, NULL: of the table.
CREATE FUNCTION records_from(_tbl text, _from text, _below text, _after text, _limit int)
RETURNS TABLE(key text, value bytea, version bigint, due float8) LANGUAGE plpgsql
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    RETURN QUERY SELECT r.key, r.value, r.version, r.due FROM records r
        WHERE r.tbl = _tbl AND r.key >= _from AND (r.key > _after OR _after = '') AND (_below IS NULL OR r.key < _below)
        ORDER BY r.key LIMIT _limit;
END $$;

CREATE FUNCTION records_due(_tbl text, _until float8, _limit int)
RETURNS TABLE(key text, value bytea, version bigint, due float8) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    RETURN QUERY SELECT r.key, r.value, r.version, r.due FROM records r
        WHERE r.tbl = _tbl AND r.due <= _until ORDER BY r.due, r.key LIMIT _limit;
END $$;

CREATE FUNCTION records_info() RETURNS TABLE(tbl text, records bigint, size bigint) LANGUAGE sql AS $$
    SELECT r.tbl, count(*), sum(octet_length(r.key) + octet_length(r.value))::bigint FROM records r GROUP BY r.tbl ORDER BY r.tbl
$$;

-- The earliest of those that are due, or any; locked by key, as everybody does. Answers how many were removed.
CREATE FUNCTION records_purge(_tbl text, _until float8, _limit int) RETURNS int LANGUAGE plpgsql
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE keys text[]; count int;
BEGIN
    IF _until IS NULL THEN
        keys := ARRAY(SELECT r.key FROM records r WHERE r.tbl = _tbl ORDER BY r.key LIMIT _limit);
    ELSE
        keys := ARRAY(SELECT r.key FROM records r WHERE r.tbl = _tbl AND r.due <= _until ORDER BY r.due, r.key LIMIT _limit);
    END IF;
    WITH locked AS MATERIALIZED (
        SELECT r.key FROM records r WHERE r.tbl = _tbl AND r.key = ANY (keys) AND (_until IS NULL OR r.due <= _until)
        ORDER BY r.key FOR UPDATE
    )
    DELETE FROM records r USING locked l WHERE r.tbl = _tbl AND r.key = l.key;
    GET DIAGNOSTICS count = ROW_COUNT;
    RETURN count;
END $$;

-- As in entries.sql: with their owner's rights.
DO $$
DECLARE f regprocedure;
BEGIN
    FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND proname IN (
        'keep', 'records_of', 'records_from', 'records_due', 'records_info', 'records_purge')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = %I, pg_catalog, pg_temp', f, current_schema());
    END LOOP;
END $$;

-- For every other client and language: `send` publishes in the caller's own transaction, `messages` shows what is stored.

-- MessagePack's string, binary and number.
CREATE FUNCTION packed(_text text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN _text IS NULL THEN '\xc0'::bytea ELSE '\xdb'::bytea || int4send(octet_length(b)) || b END
    FROM (SELECT convert_to(_text, 'UTF8') AS b) t
$$;
CREATE FUNCTION packed(_bytes bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS
    $$ SELECT '\xc6'::bytea || int4send(octet_length(_bytes)) || _bytes $$;
CREATE FUNCTION packed(_number float8) RETURNS bytea LANGUAGE sql IMMUTABLE AS
    $$ SELECT CASE WHEN _number IS NULL THEN '\xc0'::bytea ELSE '\xcb'::bytea || float8send(_number) END $$;

-- The hash of a key: zlib's crc32, as a signed integer.
CREATE FUNCTION crc32(_text text) RETURNS int LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE crc bigint := 4294967295; bytes bytea := convert_to(_text, 'UTF8');
BEGIN
    FOR i IN 0..octet_length(bytes) - 1 LOOP
        crc := crc # get_byte(bytes, i);
        FOR bit IN 1..8 LOOP
            crc := CASE WHEN crc & 1 = 1 THEN (crc >> 1) # 3988292384 ELSE crc >> 1 END;
        END LOOP;
    END LOOP;
    crc := crc # 4294967295;
    RETURN CASE WHEN crc > 2147483647 THEN crc - 4294967296 ELSE crc END;
END $$;

-- Publish with the caller's transaction: delivered after its commit, or never. Answers the message's id.
--   SELECT tidings.send('orders.placed', '{"id": 7}', key => '7', headers => '{"trace": "abc"}', delay => '10 minutes');
CREATE FUNCTION send(
    topic text, body bytea, key text DEFAULT NULL, id text DEFAULT NULL, content_type text DEFAULT 'application/json',
    headers jsonb DEFAULT NULL, priority int DEFAULT 0, delay interval DEFAULT NULL, expires interval DEFAULT NULL,
    type text DEFAULT NULL, source text DEFAULT NULL
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    now float8 := unix(); named text := coalesce(id, gen_random_uuid()::text); record bytea;
    due float8 := now + extract(epoch FROM delay)::float8; count int; pairs bytea := '\xc0';
BEGIN
    IF topic !~ '^[A-Za-z0-9%-][A-Za-z0-9_%-]*(\.[A-Za-z0-9_%-]+)*$' THEN
        RAISE EXCEPTION '% is no topic', topic USING ERRCODE = 'invalid_parameter_value', HINT = 'tokens of A-Z a-z 0-9 _ % - with dots between, the first without _';
    END IF;
    IF priority NOT BETWEEN 0 AND 9 OR octet_length(body) > 16777216 - 16384 THEN
        RAISE EXCEPTION 'priority is 0 to 9, and a body has up to 16 MiB less 16 KiB' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF headers IS NOT NULL THEN
        SELECT count(*), string_agg('\x92'::bytea || packed(h.key) || packed(h.value), '') INTO count, pairs FROM jsonb_each_text(headers) h;
        pairs := CASE WHEN count > 0 THEN '\xdd'::bytea || int4send(count) || pairs ELSE '\xc0' END;
    END IF;
    record := '\xdc0010'::bytea || packed(topic) || packed(body) || packed(named) || packed(key) || packed(now)
        || packed(coalesce(type, topic)) || packed(coalesce(source, current_schema())) || packed(content_type)
        || pairs || set_byte('\x00', 0, priority) || packed(due) || packed(now + extract(epoch FROM expires)::float8)
        || packed(NULL::text) || packed(NULL::text) || packed(NULL::text) || packed(NULL::text);
    PERFORM enlist(json_build_array(json_build_array(topic, priority, due, crc32(key), encode(record, 'base64')))::text);
    RETURN named;
END $$;

-- Messages of the caller's transaction: JSON rows of destination, priority, due, hash and record (base64).
CREATE FUNCTION enlist(_rows text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE n int;
BEGIN
    INSERT INTO delayed(due, topic, priority, hash, record)
    SELECT coalesce((r ->> 2)::float8, 0), r ->> 0, (r ->> 1)::smallint, (r ->> 3)::int, decode(r ->> 4, 'base64')
    FROM json_array_elements(_rows::json) WITH ORDINALITY e(r, n) ORDER BY e.n;
    GET DIAGNOSTICS n = ROW_COUNT;
    PERFORM pg_notify('tidings.' || current_schema(), '');
    RETURN n;
END $$;

-- Tell the other processes: there is news, and these groups have something to do.
CREATE FUNCTION signal(_groups int[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM soft();
    PERFORM pg_notify('tidings.' || current_schema(), array_to_string(_groups, ' '));
END $$;

CREATE FUNCTION float8_of(_bytes bytea) RETURNS float8 LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN b = 0 THEN 0 ELSE
        (1 + (b & 4503599627370495)::float8 / 4503599627370496) * 2.0::float8 ^ (((b >> 52) & 2047) - 1023)
        * CASE WHEN b < 0 THEN -1 ELSE 1 END END
    FROM (SELECT ('x' || encode(_bytes, 'hex'))::bit(64)::bigint AS b) t
$$;

-- The fields of a record, as JSON text or, for the body, hexadecimal; headers as an array of pairs.
CREATE FUNCTION fields(_record bytea, _from int DEFAULT 0, OUT items jsonb, OUT next int) LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE code int := get_byte(_record, _from); count int; size int; item record; at int;
BEGIN
    next := _from + 1;
    IF code BETWEEN 144 AND 159 OR code IN (220, 221) THEN
        size := CASE code WHEN 220 THEN 2 WHEN 221 THEN 4 ELSE 0 END;
        count := CASE WHEN size = 0 THEN code & 15 ELSE uint(_record, next, size) END;
        next := next + size;
        items := '[]';
        FOR i IN 1..count LOOP
            SELECT * INTO item FROM fields(_record, next);
            items := items || jsonb_build_array(item.items);
            next := item.next;
        END LOOP;
    ELSIF code BETWEEN 160 AND 191 OR code IN (217, 218, 219) THEN
        size := CASE code WHEN 217 THEN 1 WHEN 218 THEN 2 WHEN 219 THEN 4 ELSE 0 END;
        count := CASE WHEN size = 0 THEN code & 31 ELSE uint(_record, next, size) END;
        items := to_jsonb(convert_from(substring(_record, next + size + 1, count), 'UTF8'));
        next := next + size + count;
    ELSIF code IN (196, 197, 198) THEN
        size := CASE code WHEN 196 THEN 1 WHEN 197 THEN 2 ELSE 4 END;
        count := uint(_record, next, size);
        items := to_jsonb(encode(substring(_record, next + size + 1, count), 'hex'));
        next := next + size + count;
    ELSIF code = 203 THEN
        items := to_jsonb(float8_of(substring(_record, next + 1, 8)));
        next := next + 8;
    ELSIF code = 192 THEN
        items := 'null';
    ELSIF code < 128 THEN
        items := to_jsonb(code);
    ELSE
        RAISE EXCEPTION 'no record: byte % at %', code, _from USING ERRCODE = 'data_corrupted';
    END IF;
END $$;
CREATE FUNCTION uint(_bytes bytea, _at int, _size int) RETURNS int LANGUAGE sql IMMUTABLE AS $$
    SELECT sum(get_byte(_bytes, _at + i) << (8 * (_size - 1 - i)))::int FROM generate_series(0, _size - 1) i
$$;

-- What is stored, with CloudEvents names. Where `topic` and `destination` differ, it travels elsewhere than it was published.
CREATE VIEW messages AS
SELECT seq, c.topic AS destination, f ->> 0 AS topic, decode(f ->> 1, 'hex') AS data, f ->> 2 AS id, f ->> 3 AS partitionkey,
    to_timestamp((f ->> 4)::float8) AS time, f ->> 5 AS type, f ->> 6 AS source, f ->> 7 AS datacontenttype, f -> 8 AS headers,
    c.priority, to_timestamp((f ->> 10)::float8) AS deliverytime, to_timestamp((f ->> 11)::float8) AS expirytime,
    f ->> 12 AS replyto, f ->> 13 AS correlationid, f ->> 14 AS causationid, to_timestamp(at) AS stored
FROM stored JOIN channel c ON c.id = channel CROSS JOIN LATERAL (SELECT items AS f FROM fields(record)) d;

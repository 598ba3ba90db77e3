-- Everything of one bus, in a schema of its own. Times are Unix seconds by the database's clock.
CREATE TABLE meta(version int NOT NULL, born float8 NOT NULL);

-- Numbers are handed out under one lock, kept until the commit (`numbering`): who sees one number sees all before it.
CREATE SEQUENCE seq;

-- A record is a whole message (docs: `messages` shows its fields). `hash`: of its key. Partitions log_<n> are dropped
-- whole; each has its own stretch of numbers, and a new one begins where the last one ends.
CREATE TABLE log(
    seq bigint NOT NULL, channel int NOT NULL, hash int, at float8 NOT NULL, record bytea NOT NULL, PRIMARY KEY (seq)
) PARTITION BY RANGE (seq);
CREATE INDEX log_channel ON log(channel, seq);
CREATE TABLE segment(n int PRIMARY KEY, first bigint NOT NULL, last bigint NOT NULL, born float8 NOT NULL);

-- Dead letters stay outside retention; of dropped partitions, what is parked is kept.
CREATE TABLE dead(seq bigint PRIMARY KEY, channel int NOT NULL, hash int, at float8 NOT NULL, record bytea NOT NULL);
CREATE INDEX dead_channel ON dead(channel, seq);
CREATE TABLE kept(seq bigint PRIMARY KEY, channel int NOT NULL, hash int, at float8 NOT NULL, record bytea NOT NULL);
CREATE VIEW stored AS SELECT seq, channel, hash, at, record FROM log UNION ALL SELECT seq, channel, hash, at, record FROM dead;

-- A topic at a priority, so that one cursor per priority is enough.
CREATE TABLE channel(
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic text NOT NULL, priority smallint NOT NULL,
    UNIQUE (topic, priority)
);

-- What is not due yet; and what other transactions publish (due at once): it gets its numbers after their commit.
CREATE TABLE delayed(
    due float8 NOT NULL, n bigint GENERATED ALWAYS AS IDENTITY, topic text NOT NULL, priority smallint NOT NULL,
    hash int, record bytea NOT NULL, PRIMARY KEY (due, n)
);

CREATE TABLE grp(
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, app text NOT NULL, ordered bool NOT NULL,
    seen float8 NOT NULL, generation int NOT NULL DEFAULT 1, ended bigint NOT NULL DEFAULT -1, mixed bigint NOT NULL DEFAULT 0
);
-- A message matches when first <= seq <= last: patterns change without losing or repeating. `near` (LIKE) and `matcher`
-- (a regular expression) are of wildcards. `route`: the channels of a group, derived.
CREATE TABLE pattern(
    grp int NOT NULL, pattern text NOT NULL, near text, matcher text, first bigint NOT NULL, last bigint NOT NULL
);
CREATE INDEX pattern_grp ON pattern(grp);
CREATE INDEX pattern_text ON pattern(pattern);
CREATE TABLE route(
    grp int, priority smallint, channel int, first bigint, last bigint NOT NULL, PRIMARY KEY (grp, priority, channel, first)
);
CREATE INDEX route_channel ON route(channel);

-- Rows that change all the time: room in their pages, and vacuum soon.
CREATE TABLE cursor(grp int, priority smallint, seq bigint NOT NULL, PRIMARY KEY (grp, priority)) WITH (fillfactor = 40);
CREATE TABLE slot(grp int, slot int, member int, seq bigint NOT NULL, PRIMARY KEY (grp, slot)) WITH (fillfactor = 40);
CREATE TABLE claim(id bigint PRIMARY KEY, grp int NOT NULL, member int NOT NULL, todo bytea NOT NULL) WITH (fillfactor = 60);
CREATE INDEX claim_member ON claim(member);
CREATE TABLE parked(
    grp int, seq bigint, hash int, due float8 NOT NULL, failures int NOT NULL DEFAULT 0, crashes int NOT NULL DEFAULT 0,
    suspect bool NOT NULL DEFAULT false, running bool NOT NULL DEFAULT false, take int NOT NULL DEFAULT 0, member int,
    why text NOT NULL DEFAULT '', PRIMARY KEY (grp, seq)
);
CREATE INDEX parked_due ON parked(grp, suspect, due, seq) WHERE member IS NULL;
CREATE INDEX parked_hash ON parked(grp, hash, seq) WHERE hash IS NOT NULL;
CREATE INDEX parked_member ON parked(member) WHERE member IS NOT NULL;
CREATE INDEX parked_seq ON parked(seq);

CREATE TABLE tick(name text PRIMARY KEY, due float8 NOT NULL);

-- One row per open bus of a process; ids are never reused, so a lost one stays lost. `present`: it holds an advisory
-- lock on a connection of its own, which ends with the process; `missed`: since when that lock is not held.
CREATE TABLE member(
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, about text NOT NULL, lease float8 NOT NULL, beat float8 NOT NULL,
    present bool NOT NULL DEFAULT false, missed float8
) WITH (fillfactor = 40);
-- Which member consumes which group now.
CREATE TABLE part(grp int, member int, PRIMARY KEY (grp, member));
CREATE INDEX part_member ON part(member);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['cursor', 'slot', 'claim', 'parked', 'delayed', 'member'] LOOP
        EXECUTE format('ALTER TABLE %I SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)', name);
    END LOOP;
END $$;
INSERT INTO meta VALUES (2, extract(epoch FROM clock_timestamp()));

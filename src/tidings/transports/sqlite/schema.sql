-- One row: the sequence counter (numbers are never reused), versions of the segment list and of what groups read, and
-- the size in bytes of what is in the log or delayed; of which delayed.
CREATE TABLE meta(seq INTEGER NOT NULL, segments INTEGER NOT NULL, groups INTEGER NOT NULL, bytes INTEGER NOT NULL, delayed INTEGER NOT NULL);
INSERT INTO meta VALUES (0, 0, 0, 0, 0);

-- A record is a whole message (transports/_records.py). The log is a chain of tables log_<n>; the newest has no `last` yet. Retention drops whole tables.
CREATE TABLE segment(n INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER, bytes INTEGER NOT NULL, born REAL NOT NULL);

-- A topic at a priority, so that one cursor per priority is enough.
CREATE TABLE channel(id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, priority INTEGER NOT NULL, UNIQUE(topic, priority));

CREATE TABLE delayed(due REAL, n INTEGER, channel INTEGER NOT NULL, slot INTEGER, record BLOB NOT NULL, PRIMARY KEY(due, n)) WITHOUT ROWID;

CREATE TABLE grp(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, app TEXT NOT NULL, generation INTEGER NOT NULL, ordered INTEGER NOT NULL, paused INTEGER NOT NULL DEFAULT 0, seen REAL NOT NULL);

-- A message matches when first <= seq <= last (NULL: no end): patterns change without losing or repeating.
CREATE TABLE pattern(grp INTEGER NOT NULL, pattern TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER);
CREATE INDEX pattern_grp ON pattern(grp);
CREATE INDEX pattern_text ON pattern(pattern);

-- Unordered groups; a missing row is `start` of the lowest known: new priorities are read from their beginning.
CREATE TABLE cursor(grp INTEGER, priority INTEGER, seq INTEGER NOT NULL, PRIMARY KEY(grp, priority)) WITHOUT ROWID;

-- Ordered groups: 64 slots = hash(key).
CREATE TABLE slot(grp INTEGER, slot INTEGER, member INTEGER, seq INTEGER NOT NULL, PRIMARY KEY(grp, slot)) WITHOUT ROWID;
CREATE INDEX slot_member ON slot(member);

-- The unsettled numbers of one handing-out, delta-coded.
CREATE TABLE claim(id INTEGER PRIMARY KEY AUTOINCREMENT, grp INTEGER NOT NULL, member INTEGER NOT NULL, todo BLOB NOT NULL);
CREATE INDEX claim_member ON claim(member);

CREATE TABLE parked(grp INTEGER, seq INTEGER, key TEXT, slot INTEGER, due REAL NOT NULL, failures INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0, suspect INTEGER NOT NULL DEFAULT 0, running INTEGER NOT NULL DEFAULT 0, take INTEGER NOT NULL DEFAULT 0, member INTEGER, why TEXT NOT NULL DEFAULT '', PRIMARY KEY(grp, seq)) WITHOUT ROWID;
CREATE INDEX parked_due ON parked(grp, suspect, due, seq) WHERE member IS NULL;
CREATE INDEX parked_key ON parked(grp, key, seq) WHERE key IS NOT NULL;
CREATE INDEX parked_member ON parked(member) WHERE member IS NOT NULL;
CREATE INDEX parked_seq ON parked(seq);

-- Messages of parked rows whose segment was dropped; and dead letters, outside retention and size limit.
CREATE TABLE kept(seq INTEGER PRIMARY KEY, channel INTEGER NOT NULL, slot INTEGER, at REAL NOT NULL, record BLOB NOT NULL);
CREATE TABLE dead(seq INTEGER PRIMARY KEY, channel INTEGER NOT NULL, slot INTEGER, at REAL NOT NULL, record BLOB NOT NULL);
CREATE INDEX dead_channel ON dead(channel, seq);

CREATE TABLE tick(name TEXT PRIMARY KEY, due REAL NOT NULL) WITHOUT ROWID;

-- One row per open bus of a process; ids are never reused, so a lost one stays lost. `beat` is monotonic.
CREATE TABLE member(id INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL, pidns TEXT NOT NULL, beat REAL NOT NULL);
-- Which member consumes which group now.
CREATE TABLE part(grp INTEGER, member INTEGER, PRIMARY KEY(grp, member)) WITHOUT ROWID;
CREATE INDEX part_member ON part(member);

CREATE TABLE log_{n}(seq INTEGER PRIMARY KEY, channel INTEGER NOT NULL, slot INTEGER, at REAL NOT NULL, record BLOB NOT NULL);
CREATE INDEX log_{n}_channel ON log_{n}(channel, seq);

-- Messages of the transaction that inserts them; a relay publishes and deletes them in the order of `position`, which is
-- that of the commits, for SQLite has one writer at a time. Any language may insert: id, topic, key and body will do.
CREATE TABLE {table} (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    topic TEXT NOT NULL,
    key TEXT,
    body BLOB NOT NULL,
    attributes TEXT NOT NULL DEFAULT '{}',
    refused TEXT
);

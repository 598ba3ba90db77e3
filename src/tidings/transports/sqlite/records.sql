-- What handlers keep (store.py): a record by table and key; `due` orders those that have one.
CREATE TABLE IF NOT EXISTS record(tbl TEXT, key TEXT, version INTEGER NOT NULL, due REAL, value BLOB NOT NULL, PRIMARY KEY(tbl, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS record_due ON record(tbl, due, key) WHERE due IS NOT NULL;

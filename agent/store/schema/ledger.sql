-- ledger.db: what was judged and what was done about it. Every commit is on the disk before it is acknowledged.

CREATE TABLE alert (
    id           INTEGER PRIMARY KEY,
    rule         TEXT NOT NULL,
    labels       TEXT NOT NULL,     -- JSON object, names sorted
    state        TEXT NOT NULL,
    value        TEXT NOT NULL,     -- JSON number or string, as in metrics.db
    active_since REAL NOT NULL,
    fired_at     REAL,
    clear_since  REAL,
    missing      INTEGER NOT NULL,
    ended_at     REAL
);
CREATE UNIQUE INDEX alert_open ON alert (rule, labels) WHERE ended_at IS NULL;
CREATE INDEX alert_active ON alert (active_since);

CREATE TABLE action (
    id           INTEGER PRIMARY KEY,
    cause        TEXT NOT NULL,
    rule         TEXT NOT NULL,
    labels       TEXT NOT NULL,
    fired_at     REAL NOT NULL,
    step         INTEGER NOT NULL,
    attempt      INTEGER NOT NULL,
    handler      TEXT NOT NULL,
    params       TEXT NOT NULL,
    resource     TEXT NOT NULL,
    status       TEXT NOT NULL,
    reason       TEXT NOT NULL,
    verdict      TEXT,
    plan         TEXT,              -- JSON without the items, which are rows of action_item
    outcome      TEXT,              -- the same
    requested_at REAL NOT NULL,
    started_at   REAL,
    finished_at  REAL,
    mode         TEXT NOT NULL,
    extra        TEXT NOT NULL,
    boot_id      TEXT,              -- the boot in which it started; started_boot counts on that boot's clock
    started_boot REAL
);
-- The outbox key: what a crash between request and act would ask for again is the same row.
CREATE UNIQUE INDEX action_of_alert ON action (rule, labels, fired_at, step, attempt) WHERE rule <> '';
CREATE UNIQUE INDEX action_of_other ON action (cause, labels, fired_at, step, attempt) WHERE rule = '';
CREATE INDEX action_open ON action (status) WHERE status IN ('requested', 'awaiting_approval', 'running', 'verifying');
CREATE INDEX action_requested ON action (requested_at);

CREATE TABLE action_item (
    action        INTEGER NOT NULL REFERENCES action (id),
    n             INTEGER NOT NULL,
    part          TEXT NOT NULL,    -- plan: would change; skipped: left alone when planning; extra: only in the outcome
    target        TEXT NOT NULL,
    change        TEXT NOT NULL,
    bytes         INTEGER NOT NULL,
    identity      TEXT NOT NULL,
    result_n      INTEGER,          -- its place in the outcome; null: no outcome yet, or not reached
    result        TEXT,
    result_bytes  INTEGER,
    PRIMARY KEY (action, n)
) WITHOUT ROWID;

CREATE TABLE silence (
    id         INTEGER PRIMARY KEY,
    matchers   TEXT NOT NULL,
    why        TEXT NOT NULL,
    by         TEXT NOT NULL,
    starts_at  REAL NOT NULL,
    for_s      REAL NOT NULL,
    every      TEXT NOT NULL,       -- cron; empty: once
    ended_at   REAL
);

CREATE TABLE circuit (
    handler   TEXT NOT NULL,
    resource  TEXT NOT NULL,
    opened_at REAL NOT NULL,
    why       TEXT NOT NULL,
    PRIMARY KEY (handler, resource)
) WITHOUT ROWID;

CREATE TABLE job_run (
    id          INTEGER PRIMARY KEY,
    job         TEXT NOT NULL,
    due_at      REAL NOT NULL,
    started_at  REAL NOT NULL,
    finished_at REAL,
    result      TEXT NOT NULL,
    message     TEXT NOT NULL,
    UNIQUE (job, due_at)
);

CREATE TABLE report (
    id           INTEGER PRIMARY KEY,
    kind         TEXT NOT NULL,
    period_start REAL NOT NULL,
    period_end   REAL NOT NULL,
    made_at      REAL NOT NULL,
    path         TEXT NOT NULL,
    verdict      TEXT NOT NULL,
    mailed_at    REAL
);

-- The text of every rule set that was in force, by hash: what an old action was judged by can be read again.
CREATE TABLE rule_set (
    hash    TEXT PRIMARY KEY,
    first_at REAL NOT NULL,
    text    TEXT NOT NULL
) WITHOUT ROWID;

-- metrics.db: samples, their roll-ups, events and tail offsets. Readers use the views, not these tables.

CREATE TABLE series (
    id      INTEGER PRIMARY KEY,
    metric  TEXT NOT NULL,
    labels  TEXT NOT NULL,          -- JSON object, names sorted
    UNIQUE (metric, labels)
);

-- A layout says which series the values of a row belong to, by position. It is stored once and named by many rows.
CREATE TABLE slot (
    layout   INTEGER NOT NULL,
    position INTEGER NOT NULL,
    series   INTEGER NOT NULL,
    PRIMARY KEY (layout, position)
) WITHOUT ROWID;
CREATE INDEX slot_series ON slot (series, layout, position);

-- One row for each reading of a tick. The key is the instant in milliseconds times 1000, plus a number that tells
-- apart the rows of one millisecond: rows lie in time order and a range of time is a range of keys, without an index.
CREATE TABLE tick (
    id     INTEGER PRIMARY KEY,
    layout INTEGER NOT NULL,
    vals   TEXT NOT NULL            -- JSON array; "NaN", "+Inf", "-Inf" as strings, null where a series ended
);

-- One row for each minute (hour), keyed by its first second. vals[i] is a number when the series did not change in
-- that time, else [min, max, mean, last], null when it was absent. counts is a number when all are equal, else an array.
CREATE TABLE minute (
    id     INTEGER PRIMARY KEY,
    layout INTEGER NOT NULL,
    vals   TEXT NOT NULL,
    counts TEXT NOT NULL
);
CREATE TABLE hour (
    id     INTEGER PRIMARY KEY,
    layout INTEGER NOT NULL,
    vals   TEXT NOT NULL,
    counts TEXT NOT NULL
);

CREATE TABLE event (
    id       INTEGER PRIMARY KEY,
    at_ms    INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    severity TEXT NOT NULL,
    source   TEXT NOT NULL,
    message  TEXT NOT NULL,
    labels   TEXT NOT NULL          -- JSON object
);
CREATE INDEX event_at ON event (at_ms);

-- Where each tail stands; changed only in the transaction that stores what was read up to there.
CREATE TABLE tail (
    path  TEXT PRIMARY KEY,
    state TEXT NOT NULL             -- JSON object, the tailer's own
) WITHOUT ROWID;

-- When which rule set came into force: an alert was judged by the one in force when it began.
CREATE TABLE rule_use (
    id   INTEGER PRIMARY KEY,
    at   REAL NOT NULL,
    hash TEXT NOT NULL REFERENCES rule_set (hash),
    by   TEXT NOT NULL
);
CREATE INDEX rule_use_at ON rule_use (at);

-- What a person said of an alert afterwards; the last word counts.
CREATE TABLE alert_mark (
    id    INTEGER PRIMARY KEY,
    alert INTEGER NOT NULL REFERENCES alert (id),
    useful INTEGER NOT NULL,        -- 1: there was something to see to; 0: a false alarm
    why   TEXT NOT NULL,
    by    TEXT NOT NULL,
    at    REAL NOT NULL
);
CREATE INDEX alert_mark_alert ON alert_mark (alert);

-- From each of these on the wall clock ran evenly beside the boot clock: at_ms and boot_ms are the same instant on both.
-- Within one, samples are ordered by their instants; between two, by the order of these rows.
CREATE TABLE epoch (
    id      INTEGER PRIMARY KEY,
    why     TEXT NOT NULL,          -- started: the agent did; stepped: the clock was set; resumed: the host had slept
    seconds REAL NOT NULL,          -- how far the clock was set, or how long the host slept
    at_ms   INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    boot_ms INTEGER NOT NULL
);

-- Rows of a stretch of time that was lived twice, since the clock had been set back: what was stored in its first run.
-- vals is that of a row of tick, or the data of a chunk (agent/store/chunk.py) when it is a BLOB.
CREATE TABLE relived (
    epoch  INTEGER NOT NULL,        -- the one in which the stretch was lived again
    at_ms  INTEGER NOT NULL,
    layout INTEGER NOT NULL,
    vals   NOT NULL
);

-- One row for ten minutes of the readings of one layout, once they left the hot rows; agent/store/chunk.py packs them:
-- the instants in milliseconds first, then each series by position. id / 1000 is the first second of the ten minutes;
-- the rest tells chunks of the same ten minutes apart.
CREATE TABLE chunk (
    id     INTEGER PRIMARY KEY,
    layout INTEGER NOT NULL,
    data   BLOB NOT NULL
);

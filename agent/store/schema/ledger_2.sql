-- Items of actions that ended some days ago, a thousand or fewer in one value: agent/store/rows.py packs them. Each item
-- is either here or in action_item.
CREATE TABLE packed_items (
    action INTEGER NOT NULL REFERENCES action (id),
    first  INTEGER NOT NULL,        -- the least n of them
    count  INTEGER NOT NULL,
    items  BLOB NOT NULL,
    PRIMARY KEY (action, first)
);

CREATE VIEW alerts AS
SELECT id,
       strftime('%Y-%m-%dT%H:%M:%fZ', active_since, 'unixepoch') AS time,
       rule,
       labels,
       CASE WHEN ended_at IS NULL THEN state ELSE 'inactive' END AS state,
       json_extract(labels, '$.severity') AS severity,
       json_extract(value, '$') AS value,
       strftime('%Y-%m-%dT%H:%M:%fZ', fired_at, 'unixepoch') AS fired,
       strftime('%Y-%m-%dT%H:%M:%fZ', ended_at, 'unixepoch') AS ended,
       missing,
       (SELECT useful FROM alert_mark WHERE alert_mark.alert = alert.id ORDER BY alert_mark.id DESC LIMIT 1) AS useful,
       (SELECT hash FROM rule_use WHERE at <= active_since ORDER BY at DESC, rule_use.id DESC LIMIT 1) AS rule_set
FROM alert;

CREATE VIEW actions AS
SELECT id,
       strftime('%Y-%m-%dT%H:%M:%fZ', requested_at, 'unixepoch') AS time,
       cause,
       rule,
       labels,
       step,
       attempt,
       handler,
       params,
       resource,
       mode,
       status,
       verdict AS outcome,
       reason,
       json_extract(plan, '$.summary') AS plan,
       json_extract(plan, '$.item_count') AS planned_items,
       json_extract(plan, '$.bytes') AS planned_bytes,
       json_extract(outcome, '$.bytes_freed') AS bytes_freed,
       json_extract(outcome, '$.bytes_removed') AS bytes_removed,
       json_extract(outcome, '$.error') AS error,
       json_extract(outcome, '$.text') AS text,
       strftime('%Y-%m-%dT%H:%M:%fZ', started_at, 'unixepoch') AS started,
       strftime('%Y-%m-%dT%H:%M:%fZ', finished_at, 'unixepoch') AS finished,
       (SELECT hash FROM rule_use WHERE at <= requested_at ORDER BY at DESC, rule_use.id DESC LIMIT 1) AS rule_set
FROM action;

CREATE VIEW action_items AS
SELECT action AS action_id,
       n AS item,
       part,
       change,
       target,
       bytes,
       result,
       result_bytes AS bytes_removed
FROM action_item
UNION ALL
SELECT action, min(first), 'packed', NULL, sum(count) || ' items; upkeep sql shows them', NULL, NULL, NULL
FROM packed_items GROUP BY action;

CREATE VIEW job_runs AS
SELECT id,
       strftime('%Y-%m-%dT%H:%M:%fZ', due_at, 'unixepoch') AS time,
       job,
       result,
       message,
       strftime('%Y-%m-%dT%H:%M:%fZ', started_at, 'unixepoch') AS started,
       strftime('%Y-%m-%dT%H:%M:%fZ', finished_at, 'unixepoch') AS finished
FROM job_run;

CREATE VIEW silences AS
SELECT id,
       strftime('%Y-%m-%dT%H:%M:%fZ', starts_at, 'unixepoch') AS time,
       matchers,
       why,
       by,
       for_s,
       every,
       strftime('%Y-%m-%dT%H:%M:%fZ', ended_at, 'unixepoch') AS ended
FROM silence;

CREATE VIEW reports AS
SELECT id,
       strftime('%Y-%m-%dT%H:%M:%fZ', made_at, 'unixepoch') AS time,
       kind,
       strftime('%Y-%m-%dT%H:%M:%fZ', period_start, 'unixepoch') AS period_start,
       strftime('%Y-%m-%dT%H:%M:%fZ', period_end, 'unixepoch') AS period_end,
       path,
       verdict,
       strftime('%Y-%m-%dT%H:%M:%fZ', mailed_at, 'unixepoch') AS mailed
FROM report;

CREATE VIEW rule_sets AS
SELECT rule_use.id AS id,
       strftime('%Y-%m-%dT%H:%M:%fZ', at, 'unixepoch') AS time,
       hash,
       by,
       text
FROM rule_use JOIN rule_set USING (hash);

CREATE VIEW precision AS
SELECT rule,
       count(*) AS fired,
       sum(useful IS 1) AS useful,
       sum(useful IS 0) AS false_alarms,
       round(1.0 * sum(useful IS 1) / nullif(count(useful), 0), 3) AS precision
FROM alerts WHERE fired IS NOT NULL GROUP BY rule;

CREATE VIEW samples AS
SELECT strftime('%Y-%m-%dT%H:%M:%fZ', id / 1000 / 1000.0, 'unixepoch') AS time,
       metric,
       labels,
       CASE typeof(value) WHEN 'text' THEN substr(value, 1, 3 + (value LIKE '_Inf')) ELSE value * 1.0 END AS value
FROM (SELECT tick.id, series.metric, series.labels,
             json_extract(tick.vals, '$[' || slot.position || ']') AS value
      FROM tick JOIN slot ON slot.layout = tick.layout JOIN series ON series.id = slot.series)
WHERE value IS NOT NULL;

CREATE VIEW minutes AS
SELECT strftime('%Y-%m-%dT%H:%M:%fZ', minute.id, 'unixepoch') AS time,
       series.metric,
       series.labels,
       coalesce(json_extract(vals, '$[' || position || '][0]'), json_extract(vals, '$[' || position || ']')) AS min,
       coalesce(json_extract(vals, '$[' || position || '][1]'), json_extract(vals, '$[' || position || ']')) AS max,
       coalesce(json_extract(vals, '$[' || position || '][2]'), json_extract(vals, '$[' || position || ']')) AS mean,
       coalesce(json_extract(vals, '$[' || position || '][3]'), json_extract(vals, '$[' || position || ']')) AS last,
       coalesce(json_extract(counts, '$[' || position || ']'), CAST(counts AS INTEGER)) AS count
FROM minute JOIN slot ON slot.layout = minute.layout JOIN series ON series.id = slot.series
WHERE json_extract(vals, '$[' || position || ']') IS NOT NULL;

CREATE VIEW latest AS
WITH now AS (  -- a second on: both sides count milliseconds; what lies ahead was stored before the clock was set back
    SELECT max(id) AS id FROM tick WHERE id < CAST((julianday('now') - 2440587.5) * 86400 + 1 AS INTEGER) * 1000000
), newest AS (
    SELECT layout, max(tick.id) AS id FROM now, tick WHERE tick.id BETWEEN now.id - 300000000 AND now.id GROUP BY layout
), last AS (
    SELECT slot.series AS series, max(newest.id) AS id, json_extract(tick.vals, '$[' || slot.position || ']') AS value
    FROM newest JOIN tick ON tick.id = newest.id JOIN slot ON slot.layout = newest.layout
    GROUP BY slot.series
)
SELECT series.metric, series.labels,
       CASE typeof(value) WHEN 'text' THEN substr(value, 1, 3 + (value LIKE '_Inf')) ELSE value * 1.0 END AS value,
       strftime('%Y-%m-%dT%H:%M:%fZ', last.id / 1000 / 1000.0, 'unixepoch') AS time,
       round((julianday('now') - 2440587.5) * 86400 - last.id / 1000 / 1000.0, 3) AS age_s
FROM last JOIN series ON series.id = last.series
WHERE last.value IS NOT NULL;

CREATE VIEW hours AS
SELECT strftime('%Y-%m-%dT%H:%M:%fZ', hour.id, 'unixepoch') AS time,
       series.metric,
       series.labels,
       coalesce(json_extract(vals, '$[' || position || '][0]'), json_extract(vals, '$[' || position || ']')) AS min,
       coalesce(json_extract(vals, '$[' || position || '][1]'), json_extract(vals, '$[' || position || ']')) AS max,
       coalesce(json_extract(vals, '$[' || position || '][2]'), json_extract(vals, '$[' || position || ']')) AS mean,
       coalesce(json_extract(vals, '$[' || position || '][3]'), json_extract(vals, '$[' || position || ']')) AS last,
       coalesce(json_extract(counts, '$[' || position || ']'), CAST(counts AS INTEGER)) AS count
FROM hour JOIN slot ON slot.layout = hour.layout JOIN series ON series.id = slot.series
WHERE json_extract(vals, '$[' || position || ']') IS NOT NULL;

CREATE VIEW events AS
SELECT strftime('%Y-%m-%dT%H:%M:%fZ', at_ms / 1000.0, 'unixepoch') AS time, kind, severity, source, message, labels
FROM event;

CREATE VIEW performance_metrics AS
SELECT time AS timestamp,
       json_extract(labels, '$.domain') AS domain,
       max(CASE metric WHEN 'eval_latency_seconds' THEN value END) AS avg_latency,
       max(CASE metric WHEN 'eval_throughput' THEN value END) AS throughput,
       max(CASE metric WHEN 'eval_error_ratio' THEN value END) AS error_rate
FROM samples
WHERE metric IN ('eval_latency_seconds', 'eval_throughput', 'eval_error_ratio')
GROUP BY timestamp, domain;

CREATE VIEW epochs AS
SELECT strftime('%Y-%m-%dT%H:%M:%fZ', at_ms / 1000.0, 'unixepoch') AS time, why, seconds, boot_id, boot_ms / 1000.0 AS boot_s
FROM epoch;

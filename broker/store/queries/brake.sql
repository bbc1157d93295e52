-- columns: verdict_stands
-- The verdict took effect, and nothing has happened to its connection since.
v.in_effect AND (c.version, c.state, c.state_reason) = (v.version, 'needs_reauthorization', v.reason)

-- columns: verdict_waits
-- The verdict was set aside for an operator, and the connection is still what it was given on.
NOT v.in_effect AND (c.version, c.epoch, c.state) = (v.version, v.epoch, 'connected')

-- name: hold_integration
-- Whether a provider is suspect, kept from changing until the transaction ends: verdicts on its grants are weighed one after the other.
-- Rows that refer to the integration can still be written meanwhile.
SELECT suspect_since IS NOT NULL FROM integration WHERE environment_id = :environment_id AND id = :id FOR NO KEY UPDATE;

-- name: insert_verdict
-- A dead refresh token, on probation or set aside; an older verdict on the same connection gives way.
INSERT INTO verdict (environment_id, connection_id, integration_id, intent_id, version, epoch, rt_fp, reason, cause, error, in_effect)
VALUES (:environment_id, :connection_id, :integration_id, :intent_id, :version, :epoch, :rt_fp, :reason, :cause, :error, :in_effect)
ON CONFLICT (environment_id, connection_id) DO UPDATE
   SET integration_id = excluded.integration_id, intent_id = excluded.intent_id, version = excluded.version, epoch = excluded.epoch,
       rt_fp = excluded.rt_fp, reason = excluded.reason, cause = excluded.cause, error = excluded.error, in_effect = excluded.in_effect,
       given_at = excluded.given_at;

-- name: share_verdict
-- A second connection holds a refresh token whose verdict is on probation: what becomes of the one becomes of the other, at the same time.
INSERT INTO verdict (environment_id, connection_id, integration_id, intent_id, version, epoch, rt_fp, reason, cause, error, in_effect, given_at)
SELECT environment_id, :connection_id, integration_id, intent_id, :version, :epoch, rt_fp, :reason, :cause, error, true, given_at
FROM verdict
WHERE environment_id = :environment_id AND integration_id = :integration_id AND rt_fp = :rt_fp AND in_effect
LIMIT 1
ON CONFLICT (environment_id, connection_id) DO UPDATE
   SET version = excluded.version, epoch = excluded.epoch, reason = excluded.reason, cause = excluded.cause;

-- name: count_refused
-- How many grants of an integration were refused inside the window. Connections that share a refresh token are one, and so are those of one
-- owner: nobody makes a burst by themselves.
SELECT least(count(DISTINCT v.rt_fp), count(DISTINCT (c.user_key, CASE WHEN c.user_key = '' THEN c.organization_key END)))
FROM verdict v JOIN connection c ON (c.environment_id, c.id) = (v.environment_id, v.connection_id)
WHERE v.environment_id = :environment_id AND v.integration_id = :integration_id AND v.given_at > now() - :window::interval;

-- name: count_refreshes
-- How many refreshes of an integration the provider has ruled on inside the window; no further than decides.
SELECT count(*)
FROM (SELECT FROM refresh_intent
       WHERE environment_id = :environment_id AND integration_id = :integration_id AND outcome IN ('committed', 'orphaned', 'dead')
         AND finished_at > now() - :window::interval
       LIMIT :most) AS counted;

-- name: suspect_integration
-- Too many of its grants are refused at once: from now on verdicts wait for an operator.
UPDATE integration SET suspect_since = now() WHERE environment_id = :environment_id AND id = :id;

-- name: verdicts_to_withdraw
-- The connections that verdicts of the window have ended, held until the transaction ends.
SELECT {connection_columns}
FROM verdict v JOIN connection c ON (c.environment_id, c.id) = (v.environment_id, v.connection_id)
     JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE v.environment_id = :environment_id AND v.integration_id = :integration_id AND v.given_at > now() - :window::interval
  AND {verdict_stands}
ORDER BY c.id
FOR UPDATE OF c, v;

-- name: withdraw_verdicts
-- Verdicts of a burst are taken back: the connections are as before, and wait a while with the next refresh. Where an earlier answer is
-- missing, it is in doubt again.
WITH withdrawn AS (
    UPDATE verdict SET in_effect = false
     WHERE environment_id = :environment_id AND connection_id = ANY (:ids::uuid[])
    RETURNING environment_id, connection_id, rt_fp, reason
), forgotten AS (
    DELETE FROM dead_rt d USING withdrawn w WHERE (d.environment_id, d.rt_fp) = (w.environment_id, w.rt_fp)
)
UPDATE connection c
   SET state = 'connected', state_reason = NULL, state_cause = NULL, state_since = now(), in_doubt = w.reason = 'lost_response',
       retry_at = now() + :pause::interval, updated_at = now()
  FROM withdrawn w
 WHERE (c.environment_id, c.id) = (w.environment_id, w.connection_id);

-- name: claim_probations_over
-- Verdicts whose window is over, each with whether it still stands; held with their connections, and by nobody else.
SELECT {connection_columns}, {verdict_stands} AS stands
FROM verdict v JOIN connection c ON (c.environment_id, c.id) = (v.environment_id, v.connection_id)
     JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE v.in_effect AND v.given_at <= now() - :window::interval
ORDER BY v.given_at
LIMIT :most
FOR UPDATE OF c, v SKIP LOCKED;

-- name: delete_verdicts
-- They have been told of, or something else has happened to their connections.
DELETE FROM verdict WHERE environment_id = :environment_id AND connection_id = ANY (:ids::uuid[]);

-- name: lift_verdicts
-- Something else happens to connections before their verdicts were told of: return those of which nobody has heard yet.
DELETE FROM verdict v USING connection c
WHERE v.environment_id = :environment_id AND v.connection_id = ANY (:ids::uuid[])
  AND (c.environment_id, c.id) = (v.environment_id, v.connection_id) AND {verdict_stands}
RETURNING v.connection_id;

-- name: brakes
-- Integrations that an operator has to decide on or to mend. `unserved`: connections whose token has ended. `refreshes`: those that the
-- provider has ruled on since the window that made it suspect began.
SELECT i.id AS integration_id, i.slug, i.ownership, i.suspect_since, CASE WHEN i.state = 'invalid' THEN i.invalid_since END AS invalid_since,
       i.state_reason AS error, held.connections, held.unserved, ruled.refreshes
FROM integration i
CROSS JOIN LATERAL (
     SELECT count(*) AS connections, count(*) FILTER (WHERE c.serve_until <= now()) AS unserved FROM connection c
      WHERE c.environment_id = i.environment_id AND c.integration_id = i.id AND c.state = 'connected') AS held
CROSS JOIN LATERAL (
     SELECT count(*) AS refreshes FROM refresh_intent r
      WHERE r.environment_id = i.environment_id AND r.integration_id = i.id AND r.outcome IN ('committed', 'orphaned', 'dead')
        AND r.finished_at > i.suspect_since - :window::interval) AS ruled
WHERE i.environment_id = :environment_id AND i.retired_at IS NULL AND (i.suspect_since IS NOT NULL OR i.state = 'invalid')
ORDER BY i.slug, i.ownership;

-- name: verdicts_by_reason
-- What was said of an integration's grants and waits for an operator's decision.
SELECT v.reason, v.error, count(*) AS connections
FROM verdict v JOIN connection c ON (c.environment_id, c.id) = (v.environment_id, v.connection_id)
WHERE v.environment_id = :environment_id AND v.integration_id = :integration_id AND {verdict_waits}
GROUP BY v.reason, v.error
ORDER BY count(*) DESC, v.reason, v.error;

-- name: lock_suspects
-- The integrations of a slug whose provider is suspect, held until the transaction ends.
SELECT i.id FROM integration i
WHERE i.environment_id = :environment_id AND i.slug = :slug AND i.retired_at IS NULL AND i.suspect_since IS NOT NULL
ORDER BY i.id
FOR NO KEY UPDATE;

-- name: trust_integration
-- An operator has decided: verdicts on its grants count again.
UPDATE integration SET suspect_since = NULL WHERE environment_id = :environment_id AND id = :id;

-- name: claim_verdicts_to_believe
-- The next connections of which a verdict waits, held until the transaction ends. Where a refresh is under way, its answer is the better word.
SELECT {connection_columns}, v.reason
FROM verdict v JOIN connection c ON (c.environment_id, c.id) = (v.environment_id, v.connection_id)
     JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE v.environment_id = :environment_id AND v.integration_id = :integration_id AND {verdict_waits} AND c.lease_until < now()
ORDER BY c.id
LIMIT :most
FOR UPDATE OF c, v;

-- name: believe_verdicts
-- The verdicts stand after all: as when the provider gave them, for good.
WITH believed AS (
    DELETE FROM verdict WHERE environment_id = :environment_id AND connection_id = ANY (:ids::uuid[])
    RETURNING environment_id, connection_id, intent_id, rt_fp, reason, cause
), remembered AS (
    INSERT INTO dead_rt (environment_id, rt_fp, intent_id) SELECT environment_id, rt_fp, intent_id FROM believed ON CONFLICT DO NOTHING
)
UPDATE connection c
   SET state = 'needs_reauthorization', state_reason = b.reason, state_cause = b.cause || ' ' || :word::text, state_since = now(),
       in_doubt = false, fence = fence + 1, lease_until = '-infinity', lease_holder = NULL, updated_at = now()
  FROM believed b
 WHERE (c.environment_id, c.id) = (b.environment_id, b.connection_id);

-- name: forget_verdicts
-- Nothing that was said while the provider was suspect counts: return the number of connections that may be refreshed again at once.
WITH forgotten AS (
    DELETE FROM verdict WHERE environment_id = :environment_id AND integration_id = :integration_id AND NOT in_effect
    RETURNING environment_id, connection_id, version, epoch
)
UPDATE connection c SET retry_at = '-infinity'
  FROM forgotten f
 WHERE (c.environment_id, c.id, c.version, c.epoch) = (f.environment_id, f.connection_id, f.version, f.epoch) AND c.state = 'connected';

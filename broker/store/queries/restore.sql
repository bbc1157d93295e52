-- columns: this_system
-- The cluster this runs on; it keeps its identifier through backups, and a new one has another.
(SELECT system_identifier FROM pg_control_system())

-- columns: this_timeline
-- The line of history that is written now. The control file's own number lags a checkpoint behind a promotion, so this asks the log's name.
('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer

-- name: recognize
-- Which database this is, what was confirmed of it, and how far its records go; asked by every new connection. No row: nobody has begun.
SELECT d.id AS deployment_id, d.restore_epoch, d.system_identifier AS known_system, d.timeline_id AS known_timeline, d.sealed_reason,
       {this_system} AS system_identifier, CASE WHEN NOT pg_is_in_recovery() THEN {this_timeline} END AS timeline_id,
       coalesce((SELECT max(seq) FROM audit_record), 0) AS audit_seq
FROM deployment d;

-- name: adopt_database
-- This database is the deployment's from here on: nobody has looked at it before, or its new timeline is trusted to have lost nothing.
UPDATE deployment SET system_identifier = {this_system}, timeline_id = {this_timeline}
WHERE sealed_since IS NULL AND (system_identifier IS NULL OR system_identifier = {this_system});

-- name: seal_engine
-- No refresh is sent from here on. That records are missing says more than any other reason, and takes its place.
WITH sealed AS (
    UPDATE deployment SET sealed_since = coalesce(sealed_since, now()), sealed_reason = :reason
     WHERE sealed_reason IS NULL OR (sealed_reason <> :reason AND :reason = 'records_missing')
    RETURNING sealed_reason
)
INSERT INTO audit_record (environment_id, action, outcome, reason, actor_type)
SELECT e.id, 'engine_sealed', 'ok', s.sealed_reason, 'system' FROM sealed s CROSS JOIN environment e;

-- name: lock_deployment
-- Whether the engine is sealed, held until the transaction ends.
SELECT sealed_since, sealed_reason, restore_epoch FROM deployment FOR UPDATE;

-- name: unseal_engine
-- An operator has looked: this database is the deployment's, and refreshes are sent again. `step` 1: it may have lost something.
UPDATE deployment
   SET system_identifier = {this_system}, timeline_id = {this_timeline}, sealed_since = NULL, sealed_reason = NULL,
       restore_epoch = restore_epoch + :step::integer;

-- name: restore_status
-- The seal, and how many connections wait for an operator's word, of one environment or of all (NULL).
SELECT d.sealed_since, d.sealed_reason, d.restore_epoch,
       (SELECT count(*) FROM connection c
         WHERE c.restored AND c.state <> 'disconnected' AND (:environment_id::text IS NULL OR c.environment_id = :environment_id)) AS held
FROM deployment d;

-- name: recovery_points
-- The last record of each environment from before the seal: what is newer in an export happened in the database that was lost.
SELECT e.id AS environment_id, a.seq
FROM deployment d CROSS JOIN environment e CROSS JOIN LATERAL (
     SELECT seq FROM audit_record r WHERE r.environment_id = e.id AND r.at < d.sealed_since ORDER BY seq DESC LIMIT 1) a;

-- name: count_renewable
-- How many connections of these integrations could be refreshed, and how many in all.
SELECT count(*) FILTER (WHERE {holdable}) AS held, count(*) FILTER (WHERE NOT ({holdable})) AS going_on
FROM connection c
WHERE c.state <> 'disconnected' AND c.refreshable;

-- columns: holdable
-- Of an integration where an old refresh token does harm, and not cleared by evidence: of an environment whose export covers the gap, only
-- connections that were refreshed in it are held.
(c.environment_id, c.integration_id) IN (SELECT e, i FROM unnest(:environment_ids::text[], :integration_ids::uuid[]) AS at_risk (e, i))
    AND (c.environment_id <> ALL (:covered::text[]) OR c.id = ANY (:refreshed::uuid[]))

-- name: hold_connections
-- Their refresh tokens came out of a backup and may be spent: none is sent before an operator says so.
UPDATE connection c
   SET restored = true, in_doubt = (c.state = 'connected'), last_refresh_error = 'restored', updated_at = now()
WHERE c.state <> 'disconnected' AND c.refreshable AND {holdable};

-- name: held_connections
-- Connections that wait for an operator's word, behind an id; `expired`: the access token tells nothing any more.
SELECT c.id, coalesce(c.at_exp <= now(), false) AS expired
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.restored AND c.state <> 'disconnected' AND (:provider::text IS NULL OR i.slug = :provider)
  AND (:connection_id::uuid IS NULL OR c.id = :connection_id) AND (:after::uuid IS NULL OR c.id > :after)
ORDER BY c.id
LIMIT :most;

-- name: count_held_connections
-- How many of them there are.
SELECT count(*)
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.restored AND c.state <> 'disconnected' AND (:provider::text IS NULL OR i.slug = :provider)
  AND (:connection_id::uuid IS NULL OR c.id = :connection_id);

-- name: release_connection
-- An operator's word: the ordinary rules apply again. `at_floor`: not before the access token ends, which a replay could end sooner; of a
-- `dead` one nothing is handed out any more.
UPDATE connection
   SET restored = false, in_doubt = in_doubt AND NOT :unspent::boolean, last_refresh_error = NULL, updated_at = now(),
       retry_at = CASE WHEN :at_floor::boolean THEN greatest(coalesce(serve_until, now() + interval '1 day'), now()) ELSE now() END,
       serve_until = CASE WHEN :dead::boolean THEN least(serve_until, now()) ELSE serve_until END
 WHERE environment_id = :environment_id AND id = :connection_id AND version = :version AND restored;

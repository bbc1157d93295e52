-- name: match_connections
-- Count what a filter selects: all of it, and what is already as wanted. An absent filter does not restrict.
SELECT count(*) FILTER (WHERE NOT (c.state = ANY (:settled::text[]))) AS matched,
       count(*) FILTER (WHERE c.state = ANY (:settled::text[])) AS skipped
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.state <> 'disconnected' AND {connection_filter};

-- columns: connection_filter
-- The filter of pipes-api.md 14.6 as a condition; each part is off when its parameter is null.
(:provider::text IS NULL OR i.slug = :provider)
  AND (:user_id::text IS NULL OR c.user_key = :user_id)
  AND (:organization_id::text IS NULL OR c.organization_key = :organization_id)
  AND (:state::text IS NULL OR c.state = :state)
  AND (:idle_since::timestamptz IS NULL OR c.created_at < :idle_since)
  AND (:idle_since::timestamptz IS NULL OR NOT EXISTS (
        SELECT FROM audit_record a WHERE a.connection_id = c.id AND a.action = 'token_issued' AND a.at >= :idle_since))

-- name: list_connections
-- One page of an operator's list, by id in either direction.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND {connection_filter}
  AND (:after::uuid IS NULL OR CASE WHEN :ascending::boolean THEN c.id > :after ELSE c.id < :after END)
ORDER BY CASE WHEN :ascending::boolean THEN c.id END ASC, CASE WHEN NOT :ascending::boolean THEN c.id END DESC
LIMIT :most;

-- name: claim_connections
-- The next live connections that a filter selects, in order of id, held until the transaction ends.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.state <> 'disconnected' AND {connection_filter}
  AND (:position::uuid IS NULL OR c.id > :position)
ORDER BY c.id
LIMIT :most
FOR UPDATE OF c;

-- name: force_reauthorization
-- From this commit on no token of these connections is handed out, and no refresh under way can change that.
UPDATE connection c
   SET state = 'needs_reauthorization', state_reason = 'operator_forced', state_cause = :cause, state_since = now(),
       epoch = epoch + 1, fence = fence + 1, lease_holder = NULL, lease_until = '-infinity', updated_at = now()
 WHERE c.environment_id = :environment_id AND c.id = ANY (:ids::uuid[]) AND c.state <> 'disconnected'
   AND (c.state = 'connected' OR c.state_reason <> 'operator_forced');

-- name: end_connections
-- From this commit on these connections are tombstones; their tokens are kept, sealed, only to be revoked at the provider.
WITH ended AS (
    UPDATE connection
       SET state = 'disconnected', state_reason = :reason, state_cause = :cause, state_since = now(), in_doubt = false,
           epoch = epoch + 1, fence = fence + 1, lease_holder = NULL, lease_until = '-infinity', updated_at = now()
     WHERE environment_id = :environment_id AND id = ANY (:ids::uuid[]) AND state <> 'disconnected'
    RETURNING environment_id, id
), erased AS (
    DELETE FROM secret_version s USING ended
     WHERE (s.environment_id, s.connection_id) = (ended.environment_id, ended.id) AND s.state = 'previous'
)
UPDATE secret_version s SET state = 'revoking', expires_at = now() + :keep::interval
  FROM ended
 WHERE (s.environment_id, s.connection_id) = (ended.environment_id, ended.id) AND s.state IN ('current', 'orphan');

-- name: insert_revocation_jobs
-- One job per ended connection, due at once; "unsupported" where the provider offers no revocation or nothing is left to revoke.
INSERT INTO revocation_job (environment_id, id, integration_id, connection_id, operation_id, status, next_attempt_at)
SELECT :environment_id, job.id, job.integration_id, job.connection_id, :operation_id, job.status,
       CASE WHEN job.status = 'pending' THEN now() END
FROM unnest(:ids::uuid[], :integration_ids::uuid[], :connection_ids::uuid[], :statuses::text[])
     AS job (id, integration_id, connection_id, status);

-- name: insert_grant_revocation
-- Revoke tokens that never became a connection's: the job itself holds them, sealed.
INSERT INTO revocation_job (environment_id, id, integration_id, connection_id, ct, kek_ref, status, next_attempt_at)
VALUES (:environment_id, :id, :integration_id, :connection_id, :ct, :kek_ref, 'pending', now());

-- name: claim_revocation
-- The job that has been due longest; the lease is its next attempt, so that a crash only delays it.
UPDATE revocation_job j
   SET attempts = attempts + 1, last_attempt_at = now(), next_attempt_at = now() + interval '5 minutes'
 WHERE (j.environment_id, j.id) = (
       SELECT environment_id, id FROM revocation_job
        WHERE status = 'pending' AND next_attempt_at <= now()
        ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING j.environment_id, j.id, j.integration_id, j.connection_id, j.ct, j.attempts, j.created_at;

-- name: settle_revocation
-- What an attempt came to; next_attempt_at is null once it is over, and then nothing secret stays in the job.
UPDATE revocation_job
   SET status = :status, last_error = :last_error, next_attempt_at = now() + :wait::interval,
       ct = CASE WHEN :status = 'pending' THEN ct END, kek_ref = CASE WHEN :status = 'pending' THEN kek_ref END
 WHERE environment_id = :environment_id AND id = :id;

-- name: connection_revocation
-- The latest revocation of a connection, for its admin page.
SELECT status, attempts, last_attempt_at, next_attempt_at, last_error
FROM revocation_job
WHERE environment_id = :environment_id AND connection_id = :connection_id
ORDER BY created_at DESC
LIMIT 1;

-- name: insert_operation
-- A bulk operation, with what its filter matched when it was started.
INSERT INTO operation (environment_id, id, kind, filter, note, actor_type, actor_id, matched)
VALUES (:environment_id, :id, :kind, :filter, :note, :actor_type, :actor_id, :matched);

-- columns: operation_columns
-- An operation as it is shown.
environment_id, id, kind, status, filter, note, actor_type, actor_id, position, matched, done, skipped, failed, created_at, finished_at

-- name: operation
-- One operation by id.
SELECT {operation_columns} FROM operation WHERE environment_id = :environment_id AND id = :id;

-- name: lock_operation
-- One running operation, held while a chunk of it is done; nothing when it is finished or somebody else has it.
SELECT {operation_columns} FROM operation
WHERE environment_id = :environment_id AND id = :id AND status = 'running'
FOR UPDATE SKIP LOCKED;

-- name: running_operation
-- The oldest operation that still has work to do.
SELECT {operation_columns} FROM operation WHERE status = 'running' AND kind = ANY (:kinds::text[]) ORDER BY created_at LIMIT 1;

-- name: advance_operation
-- Note how far an operation has come; finished when nothing was left.
UPDATE operation
   SET position = coalesce(:position, position), done = done + :done, skipped = skipped + :skipped, failed = failed + :failed,
       status = CASE WHEN :finished::boolean THEN 'completed' ELSE status END,
       finished_at = CASE WHEN :finished::boolean THEN now() END
 WHERE environment_id = :environment_id AND id = :id;

-- name: operation_revocations
-- How the revocations that an operation started stand.
SELECT count(*) FILTER (WHERE status = 'pending') AS pending, count(*) FILTER (WHERE status = 'succeeded') AS succeeded,
       count(*) FILTER (WHERE status = 'failed') AS failed, count(*) FILTER (WHERE status = 'unsupported') AS unsupported
FROM revocation_job
WHERE environment_id = :environment_id AND operation_id = :operation_id;

-- name: last_used
-- When a token of each of these connections was last handed out.
SELECT c.id, (SELECT max(a.at) FROM audit_record a WHERE a.connection_id = c.id AND a.action = 'token_issued') AS last_used_at
FROM unnest(:ids::uuid[]) AS c (id);

-- name: lock_established_by
-- Shared connections that a leaving member established, held until the transaction ends.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.user_id IS NULL AND c.established_by_user_id = :user_id AND c.state <> 'disconnected'
ORDER BY c.id
FOR UPDATE OF c;

-- name: end_membership
-- Their credentials are erased at once; an organization's admin has to connect again.
WITH ended AS (
    UPDATE connection
       SET state = 'needs_reauthorization', state_reason = :reason, state_cause = 'The member who connected it has left.',
           state_since = now(), established_by_user_id = NULL, epoch = epoch + 1, fence = fence + 1, lease_holder = NULL,
           lease_until = '-infinity', refreshable = false, updated_at = now()
     WHERE environment_id = :environment_id AND id = ANY (:ids::uuid[])
    RETURNING environment_id, id
)
DELETE FROM secret_version s USING ended WHERE (s.environment_id, s.connection_id) = (ended.environment_id, ended.id);

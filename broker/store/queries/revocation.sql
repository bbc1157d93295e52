-- name: match_connections
-- Count what a filter selects for an operation, and how much of that is as wanted already. An absent filter does not restrict.
SELECT count(*) AS matched,
       count(*) FILTER (WHERE c.state = 'disconnected') AS ended,
       count(*) FILTER (WHERE c.state = 'needs_reauthorization' AND c.state_reason = 'operator_forced') AS forced
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND (:tombstones::boolean OR c.state <> 'disconnected') AND {connection_filter};

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
-- One page of an operator's list, newest first, before an id where one is given.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND (:from_id::uuid IS NULL OR c.id < :from_id) AND {connection_filter}
ORDER BY c.id DESC
LIMIT :most;

-- name: list_connections_ascending
-- One page of an operator's list, oldest first, behind an id where one is given.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND (:from_id::uuid IS NULL OR c.id > :from_id) AND {connection_filter}
ORDER BY c.id
LIMIT :most;

-- name: connection_facts
-- What an operator's view adds to connections: the scopes that are configured, the last hand-out, the latest revocation at the provider.
SELECT c.id, i.scopes AS wanted_scopes, used.at AS last_used_at,
       job.status, job.attempts, job.last_attempt_at, job.next_attempt_at, job.last_error
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
LEFT JOIN LATERAL (
     SELECT a.at FROM audit_record a
      WHERE a.environment_id = c.environment_id AND a.connection_id = c.id AND a.action = 'token_issued'
      ORDER BY a.seq DESC LIMIT 1) used ON true
LEFT JOIN LATERAL (
     SELECT status, attempts, last_attempt_at, next_attempt_at, last_error FROM revocation_job j
      WHERE j.environment_id = c.environment_id AND j.connection_id = c.id AND c.state = 'disconnected'
      ORDER BY created_at DESC LIMIT 1) job ON true
WHERE c.environment_id = :environment_id AND c.id = ANY (:ids::uuid[]);

-- name: claim_connections
-- The next live connections that a filter selects, in order of id, held until the transaction ends; not those made since it began.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.state <> 'disconnected' AND {connection_filter}
  AND (:position::uuid IS NULL OR c.id > :position) AND c.created_at <= :begun
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
-- From this commit on these connections are tombstones. Tokens are kept, sealed, only where the provider can be told of their end.
WITH ended AS (
    UPDATE connection
       SET state = 'disconnected', state_reason = :reason, state_cause = :cause, state_since = now(), in_doubt = false,
           epoch = epoch + 1, fence = fence + 1, lease_holder = NULL, lease_until = '-infinity', updated_at = now()
     WHERE environment_id = :environment_id AND id = ANY (:ids::uuid[]) AND state <> 'disconnected'
    RETURNING environment_id, id
), erased AS (
    DELETE FROM secret_version s USING ended
     WHERE (s.environment_id, s.connection_id) = (ended.environment_id, ended.id)
       AND (s.state = 'previous' OR NOT ended.id = ANY (:revocable::uuid[]))
)
UPDATE secret_version s SET state = 'revoking', expires_at = now() + :keep::interval
  FROM ended
 WHERE (s.environment_id, s.connection_id) = (ended.environment_id, ended.id) AND s.state IN ('current', 'orphan')
   AND ended.id = ANY (:revocable::uuid[]);

-- name: insert_revocation_jobs
-- One job per ended connection, due at once; "unsupported" where the provider offers no revocation or nothing is left to revoke.
INSERT INTO revocation_job (environment_id, id, integration_id, connection_id, operation_id, status, next_attempt_at)
SELECT :environment_id, job.id, job.integration_id, job.connection_id, :operation_id, job.status,
       CASE WHEN job.status = 'pending' THEN now() END
FROM unnest(:ids::uuid[], :integration_ids::uuid[], :connection_ids::uuid[], :statuses::text[])
     AS job (id, integration_id, connection_id, status);

-- name: insert_grant_revocation
-- Revoke tokens that no connection holds, or holds any more: the job itself has them, sealed.
INSERT INTO revocation_job (environment_id, id, integration_id, connection_id, ct, kek_ref, config, status, next_attempt_at)
VALUES (:environment_id, :id, :integration_id, :connection_id, :ct, :kek_ref, :config, 'pending', now());

-- name: claim_revocation
-- The job that was tried least and has been due longest, so that one silent provider holds nobody else up. The lease is its next attempt: a
-- crash only delays it. A bulk operation ends everything here before the first provider hears of it, and an operator confirms a
-- restored database before any does.
UPDATE revocation_job j
   SET attempts = attempts + 1, last_attempt_at = now(), next_attempt_at = now() + interval '5 minutes'
 WHERE (j.environment_id, j.id) = (
       SELECT d.environment_id, d.id FROM revocation_job d
        WHERE d.status = 'pending' AND d.next_attempt_at <= now()
          AND NOT EXISTS (SELECT FROM deployment WHERE sealed_since IS NOT NULL)
          AND NOT EXISTS (SELECT FROM operation o
                           WHERE (o.environment_id, o.id) = (d.environment_id, d.operation_id) AND o.status = 'running')
        ORDER BY d.attempts, d.next_attempt_at LIMIT 1 FOR UPDATE OF d SKIP LOCKED)
RETURNING j.environment_id, j.id, j.integration_id, j.connection_id, j.ct, j.config, j.attempts, j.last_error, j.created_at,
          j.last_attempt_at AS claimed_at;

-- name: settle_revocation
-- What an attempt came to; next_attempt_at is null once it is over, and then nothing secret stays in the job.
UPDATE revocation_job
   SET status = :status, last_error = :last_error, next_attempt_at = now() + :wait::interval,
       ct = CASE WHEN :status = 'pending' THEN ct END, kek_ref = CASE WHEN :status = 'pending' THEN kek_ref END
 WHERE environment_id = :environment_id AND id = :id;

-- name: replace_revoking_secret
-- Tokens that were refreshed only to be revoked take the place of those they came from, so that a retry finds them.
WITH moved AS (
    UPDATE connection SET version = version + 1, at_exp = :at_exp, updated_at = now()
     WHERE environment_id = :environment_id AND id = :connection_id AND version = :seen AND state = 'disconnected'
    RETURNING environment_id, id, version, fence
), spent AS (
    DELETE FROM secret_version s USING moved
     WHERE (s.environment_id, s.connection_id) = (moved.environment_id, moved.id) AND s.version_no = :seen AND s.state = 'revoking'
)
INSERT INTO secret_version (environment_id, connection_id, version_no, fence, state, received_at, ct, kek_ref, expires_at)
SELECT environment_id, id, version, fence, 'revoking', now(), :ct, :kek_ref, :expires_at FROM moved
RETURNING environment_id, connection_id, version_no, fence, state, received_at, ct;

-- name: abandon_integration_secrets
-- The provider's address was changed: what was obtained from the old one is never sent to the new one, not even to be revoked.
WITH abandoned AS (
    UPDATE revocation_job SET status = 'failed', last_error = 'address_changed', next_attempt_at = NULL, ct = NULL, kek_ref = NULL
     WHERE environment_id = :environment_id AND integration_id = :integration_id AND status = 'pending'
)
DELETE FROM secret_version s USING connection c
 WHERE (c.environment_id, c.id) = (s.environment_id, s.connection_id)
   AND c.environment_id = :environment_id AND c.integration_id = :integration_id;

-- name: insert_operation
-- A bulk operation, with what its filter matched when it was started, and what needed no change even then.
INSERT INTO operation (environment_id, id, kind, filter, note, actor_type, actor_id, matched, skipped)
VALUES (:environment_id, :id, :kind, :filter, :note, :actor_type, :actor_id, :matched, :skipped);

-- columns: operation_columns
-- An operation as it is shown.
environment_id, id, kind, status, filter, note, actor_type, actor_id, position, matched, done, skipped, failed, created_at, finished_at

-- name: operation
-- One operation by id.
SELECT {operation_columns} FROM operation WHERE environment_id = :environment_id AND id = :id;

-- name: lock_operation
-- One running operation, held while a chunk of it is done, so that two processes take turns; nothing when it is finished.
SELECT {operation_columns} FROM operation
WHERE environment_id = :environment_id AND id = :id AND status = 'running'
FOR UPDATE;

-- name: running_operations
-- The operations that still have work to do, oldest first.
SELECT {operation_columns} FROM operation WHERE status = 'running' AND kind = ANY (:kinds::text[]) ORDER BY created_at LIMIT 20;

-- name: advance_operation
-- Note how far an operation has come.
UPDATE operation SET position = coalesce(:position, position), done = done + :done, skipped = skipped + :skipped
 WHERE environment_id = :environment_id AND id = :id;

-- name: finish_operation
-- Nothing is left to do; only the first of several processes says so.
UPDATE operation SET status = :status, failed = :failed, finished_at = now()
 WHERE environment_id = :environment_id AND id = :id AND status = 'running';

-- name: operation_revocations
-- How the revocations that an operation started stand.
SELECT count(*) FILTER (WHERE status = 'pending') AS pending, count(*) FILTER (WHERE status = 'succeeded') AS succeeded,
       count(*) FILTER (WHERE status = 'failed') AS failed, count(*) FILTER (WHERE status = 'unsupported') AS unsupported
FROM revocation_job
WHERE environment_id = :environment_id AND operation_id = :operation_id;

-- name: lock_established_by
-- Shared connections that a leaving member established, held until the transaction ends.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.user_id IS NULL AND c.established_by_user_id = :user_id AND c.state <> 'disconnected'
ORDER BY c.id
FOR UPDATE OF c;

-- name: end_membership
-- The member who established these has left: an organization's admin has to connect again. Their credentials are erased next.
UPDATE connection
   SET state = 'needs_reauthorization', state_reason = :reason, state_cause = 'The member who connected it has left.',
       state_since = now(), established_by_user_id = NULL, epoch = epoch + 1, fence = fence + 1, lease_holder = NULL,
       lease_until = '-infinity', refreshable = false, updated_at = now()
 WHERE environment_id = :environment_id AND id = ANY (:ids::uuid[]);

-- name: backlog
-- What waits for a worker, in all environments.
SELECT revocations.waiting AS revocations, revocations.oldest AS oldest_revocation, operations.waiting AS operations,
       answers.waiting AS answers
FROM (SELECT count(*) AS waiting, coalesce(extract(epoch FROM now() - min(created_at)), 0)::double precision AS oldest
        FROM revocation_job WHERE status = 'pending') AS revocations,
     (SELECT count(*) AS waiting FROM operation WHERE status = 'running') AS operations,
     (SELECT count(*) AS waiting FROM receipt WHERE parsed_at IS NULL) AS answers;

-- name: burn_user_requests
-- Flows of a leaving user that are under way: they connect nothing any more, and nothing secret of them stays. Tokens held for a decision
-- are due now: the sweep has them revoked.
WITH held AS (
    UPDATE authorization_request SET expires_at = least(expires_at, now())
     WHERE environment_id = :environment_id AND user_id = :user_id AND status = 'held'
)
UPDATE authorization_request
   SET status = 'burnt', error_code = 'user_offboarded', verifier_ct = NULL, verifier_kek_ref = NULL, code_ct = NULL, code_kek_ref = NULL,
       connect_code_digest = NULL, state_digest = NULL
 WHERE environment_id = :environment_id AND user_id = :user_id AND status IN ('started', 'redirected', 'returned', 'finishing');

-- name: claim_withheld
-- Connections whose tokens have been withheld for long enough, held until the transaction ends.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.state = 'needs_reauthorization' AND c.state_since < now() - :withheld_for::interval
  AND EXISTS (SELECT FROM secret_version s
               WHERE (s.environment_id, s.connection_id) = (c.environment_id, c.id) AND s.state = 'current')
ORDER BY c.state_since
LIMIT :most
FOR UPDATE OF c SKIP LOCKED;

-- name: erase_secrets
-- Every version of a connection's tokens.
DELETE FROM secret_version WHERE environment_id = :environment_id AND connection_id = :connection_id;

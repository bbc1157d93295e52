-- columns: api_key_columns
-- An API key as it is listed.
environment_id, id, name, last_four, scopes, created_at, expires_at, last_used_at, revoked_at

-- name: api_key_by_digest
-- A key that may be used now.
SELECT {api_key_columns} FROM api_key WHERE digest = :digest AND revoked_at IS NULL AND expires_at > now();

-- name: api_key
-- One key by id.
SELECT {api_key_columns} FROM api_key WHERE id = :id;

-- name: api_keys
-- The keys of one environment, or of all.
SELECT {api_key_columns} FROM api_key
WHERE :environment_id::text IS NULL OR environment_id = :environment_id
ORDER BY environment_id, created_at;

-- name: insert_api_key
-- A new key: its digest, never the key.
INSERT INTO api_key (environment_id, id, name, digest, last_four, scopes, expires_at)
VALUES (:environment_id, :id, :name, :digest, :last_four, :scopes, :expires_at);

-- name: forget_api_key
-- A bootstrap key that was revoked or has expired is made anew by its operator's setting.
DELETE FROM api_key WHERE digest = :digest;

-- name: revoke_api_key
-- End a key.
UPDATE api_key SET revoked_at = coalesce(revoked_at, now()) WHERE id = :id RETURNING {api_key_columns};

-- name: ensure_environment
-- The isolation unit, made when it is first named.
INSERT INTO environment (id) VALUES (:id) ON CONFLICT DO NOTHING;

-- name: ensure_deployment
-- The deployment's identity, made once; every blob is bound to it. The update changes nothing: it waits for a process that is
-- making the row this moment, and a plain SELECT would not see that row yet.
INSERT INTO deployment DEFAULT VALUES ON CONFLICT (only_row) DO UPDATE SET only_row = true RETURNING id;

-- name: claim_idempotency_key
-- Reserve a key for the request that brings it first; a crashed first request gives it up after a minute.
INSERT INTO idempotency_key (environment_id, caller_id, route, key_digest, body_digest)
VALUES (:environment_id, :caller_id, :route, :key_digest, :body_digest)
ON CONFLICT (environment_id, caller_id, route, key_digest) DO UPDATE
    SET created_at = now(), body_digest = excluded.body_digest, status = NULL, body = NULL
  WHERE idempotency_key.created_at < now() - interval '24 hours'
     OR (idempotency_key.status IS NULL AND idempotency_key.created_at < now() - interval '1 minute')
RETURNING true;

-- name: idempotent_answer
-- What the first request with this key was answered.
SELECT body_digest, status, body
FROM idempotency_key
WHERE environment_id = :environment_id AND caller_id = :caller_id AND route = :route AND key_digest = :key_digest;

-- name: store_idempotent_answer
-- Keep an answer for a day; never one that holds a token.
UPDATE idempotency_key SET status = :status, body = :body
WHERE environment_id = :environment_id AND caller_id = :caller_id AND route = :route AND key_digest = :key_digest;

-- name: release_idempotency_key
-- The request failed in a way that a retry may mend: the key is free again.
DELETE FROM idempotency_key
WHERE environment_id = :environment_id AND caller_id = :caller_id AND route = :route AND key_digest = :key_digest;

-- name: purge_idempotency_keys
-- A day is over.
DELETE FROM idempotency_key WHERE created_at < now() - interval '24 hours';

-- name: ready
-- The database answers, and is one that can be written to.
SELECT NOT pg_is_in_recovery();

-- name: purge_history
-- Rows that only tell of what is over: attempts, events, settled revocations and finished operations, kept for ninety days; and refresh
-- tokens refused so long ago that whatever held them has been erased.
WITH refused AS (
    DELETE FROM dead_rt WHERE seen_at < now() - interval '90 days'
), attempts AS (
    DELETE FROM refresh_intent WHERE finished_at < now() - interval '90 days'
), events AS (
    DELETE FROM event WHERE created_at < now() - interval '90 days'
), jobs AS (
    DELETE FROM revocation_job WHERE status <> 'pending' AND created_at < now() - interval '90 days'
)
DELETE FROM operation WHERE finished_at < now() - interval '90 days';

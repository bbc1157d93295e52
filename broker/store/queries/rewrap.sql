-- name: count_stale
-- How many blobs are under another key version than the primary.
SELECT (SELECT count(*) FROM secret_version WHERE kek_ref <> :primary)
     + (SELECT count(*) FROM receipt WHERE kek_ref <> :primary)
     + (SELECT count(*) FROM authorization_request WHERE code_kek_ref <> :primary)
     + (SELECT count(*) FROM authorization_request WHERE verifier_kek_ref <> :primary)
     + (SELECT count(*) FROM authorization_request WHERE held_kek_ref <> :primary)
     + (SELECT count(*) FROM revocation_job WHERE kek_ref <> :primary)
     + (SELECT count(*) FROM integration WHERE client_secret_kek_ref <> :primary);

-- name: blobs_by_key_version
-- How many blobs need each key version, so that none is destroyed too early.
SELECT kek_ref, count(*) AS blobs
FROM (SELECT kek_ref FROM secret_version
      UNION ALL SELECT kek_ref FROM receipt
      UNION ALL SELECT code_kek_ref FROM authorization_request
      UNION ALL SELECT verifier_kek_ref FROM authorization_request
      UNION ALL SELECT held_kek_ref FROM authorization_request
      UNION ALL SELECT kek_ref FROM revocation_job
      UNION ALL SELECT client_secret_kek_ref FROM integration) AS blob
WHERE kek_ref IS NOT NULL
GROUP BY kek_ref
ORDER BY kek_ref;

-- name: stale_secret_version
-- The next token sets under an older key version, in the order of the primary key, held until the transaction ends.
SELECT environment_id, connection_id AS row_id, version_no, fence, ct, kek_ref
FROM secret_version
WHERE kek_ref <> :primary AND (environment_id, connection_id, version_no, fence) > (:environment_id, :row_id, :version_no, :fence)
ORDER BY environment_id, connection_id, version_no, fence
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_secret_version
-- Write token sets back under the primary key version, unless they changed meanwhile.
UPDATE secret_version old SET ct = fresh.ct, kek_ref = fresh.kek_ref
FROM unnest(:environment_ids::text[], :row_ids::uuid[], :version_nos::bigint[], :fences::bigint[], :cts::bytea[], :kek_refs::text[],
            :seen_refs::text[]) AS fresh (environment_id, row_id, version_no, fence, ct, kek_ref, seen_ref)
WHERE (old.environment_id, old.connection_id, old.version_no, old.fence)
      = (fresh.environment_id, fresh.row_id, fresh.version_no, fresh.fence) AND old.kek_ref = fresh.seen_ref;

-- name: stale_receipt
-- The next provider answers under an older key version, in the order of the primary key, held until the transaction ends.
SELECT environment_id, intent_id AS row_id, 0::bigint AS version_no, 0::bigint AS fence, ct, kek_ref
FROM receipt
WHERE kek_ref <> :primary AND (environment_id, intent_id, 0::bigint, 0::bigint) > (:environment_id, :row_id, :version_no, :fence)
ORDER BY environment_id, intent_id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_receipt
-- Write provider answers back under the primary key version, unless they changed meanwhile.
UPDATE receipt old SET ct = fresh.ct, kek_ref = fresh.kek_ref
FROM unnest(:environment_ids::text[], :row_ids::uuid[], :version_nos::bigint[], :fences::bigint[], :cts::bytea[], :kek_refs::text[],
            :seen_refs::text[]) AS fresh (environment_id, row_id, version_no, fence, ct, kek_ref, seen_ref)
WHERE (old.environment_id, old.intent_id) = (fresh.environment_id, fresh.row_id) AND old.kek_ref = fresh.seen_ref;

-- name: stale_authorization_request_code
-- The next codes waiting for finish under an older key version, in the order of the primary key, held until the transaction ends.
SELECT environment_id, id AS row_id, 0::bigint AS version_no, 0::bigint AS fence, code_ct AS ct, code_kek_ref AS kek_ref
FROM authorization_request
WHERE code_kek_ref <> :primary AND (environment_id, id, 0::bigint, 0::bigint) > (:environment_id, :row_id, :version_no, :fence)
ORDER BY environment_id, id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_authorization_request_code
-- Write codes waiting for finish back under the primary key version, unless they changed meanwhile.
UPDATE authorization_request old SET code_ct = fresh.ct, code_kek_ref = fresh.kek_ref
FROM unnest(:environment_ids::text[], :row_ids::uuid[], :version_nos::bigint[], :fences::bigint[], :cts::bytea[], :kek_refs::text[],
            :seen_refs::text[]) AS fresh (environment_id, row_id, version_no, fence, ct, kek_ref, seen_ref)
WHERE (old.environment_id, old.id) = (fresh.environment_id, fresh.row_id) AND old.code_kek_ref = fresh.seen_ref;

-- name: stale_authorization_request_verifier
-- The next PKCE verifiers of flows under way under an older key version, in the order of the primary key, held until the transaction ends.
SELECT environment_id, id AS row_id, 0::bigint AS version_no, 0::bigint AS fence, verifier_ct AS ct, verifier_kek_ref AS kek_ref
FROM authorization_request
WHERE verifier_kek_ref <> :primary AND (environment_id, id, 0::bigint, 0::bigint) > (:environment_id, :row_id, :version_no, :fence)
ORDER BY environment_id, id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_authorization_request_verifier
-- Write PKCE verifiers of flows under way back under the primary key version, unless they changed meanwhile.
UPDATE authorization_request old SET verifier_ct = fresh.ct, verifier_kek_ref = fresh.kek_ref
FROM unnest(:environment_ids::text[], :row_ids::uuid[], :version_nos::bigint[], :fences::bigint[], :cts::bytea[], :kek_refs::text[],
            :seen_refs::text[]) AS fresh (environment_id, row_id, version_no, fence, ct, kek_ref, seen_ref)
WHERE (old.environment_id, old.id) = (fresh.environment_id, fresh.row_id) AND old.verifier_kek_ref = fresh.seen_ref;

-- name: stale_authorization_request_held
-- The next held grants under an older key version, in the order of the primary key, held until the transaction ends.
SELECT environment_id, id AS row_id, 0::bigint AS version_no, 0::bigint AS fence, held_ct AS ct, held_kek_ref AS kek_ref
FROM authorization_request
WHERE held_kek_ref <> :primary AND (environment_id, id, 0::bigint, 0::bigint) > (:environment_id, :row_id, :version_no, :fence)
ORDER BY environment_id, id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_authorization_request_held
-- Write held grants back under the primary key version, unless they changed meanwhile.
UPDATE authorization_request old SET held_ct = fresh.ct, held_kek_ref = fresh.kek_ref
FROM unnest(:environment_ids::text[], :row_ids::uuid[], :version_nos::bigint[], :fences::bigint[], :cts::bytea[], :kek_refs::text[],
            :seen_refs::text[]) AS fresh (environment_id, row_id, version_no, fence, ct, kek_ref, seen_ref)
WHERE (old.environment_id, old.id) = (fresh.environment_id, fresh.row_id) AND old.held_kek_ref = fresh.seen_ref;

-- name: stale_revocation_job
-- The next tokens waiting for their revocation under an older key version, in the order of the primary key, held until the transaction ends.
SELECT environment_id, id AS row_id, 0::bigint AS version_no, 0::bigint AS fence, ct, kek_ref
FROM revocation_job
WHERE kek_ref <> :primary AND (environment_id, id, 0::bigint, 0::bigint) > (:environment_id, :row_id, :version_no, :fence)
ORDER BY environment_id, id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_revocation_job
-- Write tokens waiting for their revocation back under the primary key version, unless they changed meanwhile.
UPDATE revocation_job old SET ct = fresh.ct, kek_ref = fresh.kek_ref
FROM unnest(:environment_ids::text[], :row_ids::uuid[], :version_nos::bigint[], :fences::bigint[], :cts::bytea[], :kek_refs::text[],
            :seen_refs::text[]) AS fresh (environment_id, row_id, version_no, fence, ct, kek_ref, seen_ref)
WHERE (old.environment_id, old.id) = (fresh.environment_id, fresh.row_id) AND old.kek_ref = fresh.seen_ref;

-- name: stale_integration
-- The next client secrets under an older key version, in the order of the primary key, held until the transaction ends.
SELECT environment_id, id AS row_id, 0::bigint AS version_no, 0::bigint AS fence, client_secret_ct AS ct, client_secret_kek_ref AS kek_ref
FROM integration
WHERE client_secret_kek_ref <> :primary AND (environment_id, id, 0::bigint, 0::bigint) > (:environment_id, :row_id, :version_no, :fence)
ORDER BY environment_id, id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_integration
-- Write client secrets back under the primary key version, unless they changed meanwhile.
UPDATE integration old SET client_secret_ct = fresh.ct, client_secret_kek_ref = fresh.kek_ref
FROM unnest(:environment_ids::text[], :row_ids::uuid[], :version_nos::bigint[], :fences::bigint[], :cts::bytea[], :kek_refs::text[],
            :seen_refs::text[]) AS fresh (environment_id, row_id, version_no, fence, ct, kek_ref, seen_ref)
WHERE (old.environment_id, old.id) = (fresh.environment_id, fresh.row_id) AND old.client_secret_kek_ref = fresh.seen_ref;

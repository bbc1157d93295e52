-- name: count_stale
-- How many blobs are under another key version than the primary.
SELECT (SELECT count(*) FROM secret_version WHERE kek_ref <> :primary)
     + (SELECT count(*) FROM receipt WHERE kek_ref <> :primary)
     + (SELECT count(*) FROM authorization_request WHERE code_kek_ref <> :primary)
     + (SELECT count(*) FROM authorization_request WHERE verifier_kek_ref <> :primary)
     + (SELECT count(*) FROM authorization_request WHERE held_kek_ref <> :primary)
     + (SELECT count(*) FROM revocation_job WHERE kek_ref <> :primary)
     + (SELECT count(*) FROM integration WHERE client_secret_kek_ref <> :primary);

-- name: stale_secret_version
-- The next token sets under an older key version, in a stable order, held until the transaction ends.
SELECT environment_id || '/' || connection_id || '/' || version_no || '/' || fence AS place, ct AS ct, kek_ref AS kek_ref
FROM secret_version
WHERE kek_ref <> :primary AND environment_id || '/' || connection_id || '/' || version_no || '/' || fence > :after
ORDER BY environment_id || '/' || connection_id || '/' || version_no || '/' || fence
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_secret_version
-- Write token sets back under the primary key version, unless they changed meanwhile.
UPDATE secret_version SET ct = fresh.ct, kek_ref = fresh.kek_ref
FROM unnest(:places::text[], :cts::bytea[], :kek_refs::text[], :olds::text[]) AS fresh (place, ct, kek_ref, old)
WHERE environment_id || '/' || connection_id || '/' || version_no || '/' || fence = fresh.place AND kek_ref = fresh.old;

-- name: stale_receipt
-- The next provider answers under an older key version, in a stable order, held until the transaction ends.
SELECT environment_id || '/' || intent_id AS place, ct AS ct, kek_ref AS kek_ref
FROM receipt
WHERE kek_ref <> :primary AND environment_id || '/' || intent_id > :after
ORDER BY environment_id || '/' || intent_id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_receipt
-- Write provider answers back under the primary key version, unless they changed meanwhile.
UPDATE receipt SET ct = fresh.ct, kek_ref = fresh.kek_ref
FROM unnest(:places::text[], :cts::bytea[], :kek_refs::text[], :olds::text[]) AS fresh (place, ct, kek_ref, old)
WHERE environment_id || '/' || intent_id = fresh.place AND kek_ref = fresh.old;

-- name: stale_authorization_request_code
-- The next codes waiting for finish under an older key version, in a stable order, held until the transaction ends.
SELECT environment_id || '/' || id AS place, code_ct AS ct, code_kek_ref AS kek_ref
FROM authorization_request
WHERE code_kek_ref <> :primary AND environment_id || '/' || id > :after
ORDER BY environment_id || '/' || id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_authorization_request_code
-- Write codes waiting for finish back under the primary key version, unless they changed meanwhile.
UPDATE authorization_request SET code_ct = fresh.ct, code_kek_ref = fresh.kek_ref
FROM unnest(:places::text[], :cts::bytea[], :kek_refs::text[], :olds::text[]) AS fresh (place, ct, kek_ref, old)
WHERE environment_id || '/' || id = fresh.place AND code_kek_ref = fresh.old;

-- name: stale_authorization_request_verifier
-- The next PKCE verifiers of flows under way under an older key version, in a stable order, held until the transaction ends.
SELECT environment_id || '/' || id AS place, verifier_ct AS ct, verifier_kek_ref AS kek_ref
FROM authorization_request
WHERE verifier_kek_ref <> :primary AND environment_id || '/' || id > :after
ORDER BY environment_id || '/' || id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_authorization_request_verifier
-- Write PKCE verifiers of flows under way back under the primary key version, unless they changed meanwhile.
UPDATE authorization_request SET verifier_ct = fresh.ct, verifier_kek_ref = fresh.kek_ref
FROM unnest(:places::text[], :cts::bytea[], :kek_refs::text[], :olds::text[]) AS fresh (place, ct, kek_ref, old)
WHERE environment_id || '/' || id = fresh.place AND verifier_kek_ref = fresh.old;

-- name: stale_authorization_request_held
-- The next held grants under an older key version, in a stable order, held until the transaction ends.
SELECT environment_id || '/' || id AS place, held_ct AS ct, held_kek_ref AS kek_ref
FROM authorization_request
WHERE held_kek_ref <> :primary AND environment_id || '/' || id > :after
ORDER BY environment_id || '/' || id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_authorization_request_held
-- Write held grants back under the primary key version, unless they changed meanwhile.
UPDATE authorization_request SET held_ct = fresh.ct, held_kek_ref = fresh.kek_ref
FROM unnest(:places::text[], :cts::bytea[], :kek_refs::text[], :olds::text[]) AS fresh (place, ct, kek_ref, old)
WHERE environment_id || '/' || id = fresh.place AND held_kek_ref = fresh.old;

-- name: stale_revocation_job
-- The next tokens waiting for their revocation under an older key version, in a stable order, held until the transaction ends.
SELECT environment_id || '/' || id AS place, ct AS ct, kek_ref AS kek_ref
FROM revocation_job
WHERE kek_ref <> :primary AND environment_id || '/' || id > :after
ORDER BY environment_id || '/' || id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_revocation_job
-- Write tokens waiting for their revocation back under the primary key version, unless they changed meanwhile.
UPDATE revocation_job SET ct = fresh.ct, kek_ref = fresh.kek_ref
FROM unnest(:places::text[], :cts::bytea[], :kek_refs::text[], :olds::text[]) AS fresh (place, ct, kek_ref, old)
WHERE environment_id || '/' || id = fresh.place AND kek_ref = fresh.old;

-- name: stale_integration
-- The next client secrets under an older key version, in a stable order, held until the transaction ends.
SELECT environment_id || '/' || id AS place, client_secret_ct AS ct, client_secret_kek_ref AS kek_ref
FROM integration
WHERE client_secret_kek_ref <> :primary AND environment_id || '/' || id > :after
ORDER BY environment_id || '/' || id
LIMIT :most
FOR UPDATE SKIP LOCKED;

-- name: rewrap_integration
-- Write client secrets back under the primary key version, unless they changed meanwhile.
UPDATE integration SET client_secret_ct = fresh.ct, client_secret_kek_ref = fresh.kek_ref
FROM unnest(:places::text[], :cts::bytea[], :kek_refs::text[], :olds::text[]) AS fresh (place, ct, kek_ref, old)
WHERE environment_id || '/' || id = fresh.place AND client_secret_kek_ref = fresh.old;

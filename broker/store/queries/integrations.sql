-- columns: integration_columns
-- An integration with its custom definition, if it has one.
i.environment_id, i.id, i.slug, i.ownership, i.redirect_key, i.description, i.enabled, i.state, i.state_reason, i.scopes, i.auth_methods,
       i.config, i.credentials_type, i.client_id, i.client_secret_ct, i.client_secret_last4, i.revision, p.definition AS custom_provider,
       i.suspect_since, i.created_at, i.updated_at

-- name: integration
-- One integration by id.
SELECT {integration_columns}
FROM integration i LEFT JOIN custom_provider p ON (p.environment_id, p.slug) = (i.environment_id, i.slug)
WHERE i.environment_id = :environment_id AND i.id = :id;

-- name: integration_by_slug
-- The root of a slug with the wanted ownership.
SELECT {integration_columns}
FROM integration i LEFT JOIN custom_provider p ON (p.environment_id, p.slug) = (i.environment_id, i.slug)
WHERE i.environment_id = :environment_id AND i.slug = :slug AND i.ownership = :ownership AND i.retired_at IS NULL;

-- name: integration_by_redirect_key
-- The integration that a redirect URI names, a deleted one too: the flows that come back to it still have to end.
SELECT {integration_columns}
FROM integration i LEFT JOIN custom_provider p ON (p.environment_id, p.slug) = (i.environment_id, i.slug)
WHERE i.redirect_key = :redirect_key AND i.slug = :slug;

-- name: integrations
-- Every integration of an environment, newest first in the order of ids, one page.
SELECT {integration_columns}
FROM integration i LEFT JOIN custom_provider p ON (p.environment_id, p.slug) = (i.environment_id, i.slug)
WHERE i.environment_id = :environment_id AND i.retired_at IS NULL AND (:ownership::text IS NULL OR i.ownership = :ownership)
  AND (:after::uuid IS NULL OR CASE WHEN :ascending::boolean THEN i.id > :after ELSE i.id < :after END)
ORDER BY CASE WHEN :ascending::boolean THEN i.id END ASC, CASE WHEN NOT :ascending::boolean THEN i.id END DESC
LIMIT :most;

-- name: integrations_of_ownership
-- What data_providers lists.
SELECT {integration_columns}
FROM integration i LEFT JOIN custom_provider p ON (p.environment_id, p.slug) = (i.environment_id, i.slug)
WHERE i.environment_id = :environment_id AND i.ownership = :ownership AND i.retired_at IS NULL
ORDER BY i.slug;

-- name: every_integration
-- All integrations of the deployment, for `penstock doctor`.
SELECT {integration_columns}
FROM integration i LEFT JOIN custom_provider p ON (p.environment_id, p.slug) = (i.environment_id, i.slug)
WHERE i.retired_at IS NULL
ORDER BY i.environment_id, i.slug;

-- name: insert_integration
-- A new root.
INSERT INTO integration (environment_id, id, slug, ownership, redirect_key, description, enabled, state, scopes, auth_methods, config,
                         credentials_type, client_id, client_secret_ct, client_secret_kek_ref, client_secret_last4)
VALUES (:environment_id, :id, :slug, :ownership, :redirect_key, :description, :enabled, :state, :scopes, :auth_methods, :config,
        :credentials_type, :client_id, :client_secret_ct, :client_secret_kek_ref, :client_secret_last4);

-- name: update_integration
-- Every changeable field; a change of revision is part of the client secret's associated data.
UPDATE integration
   SET description = :description, enabled = :enabled, state = :state, state_reason = NULL, scopes = :scopes, config = :config,
       credentials_type = :credentials_type, client_id = :client_id, client_secret_ct = :client_secret_ct,
       client_secret_kek_ref = :client_secret_kek_ref, client_secret_last4 = :client_secret_last4, revision = :revision,
       updated_at = now()
 WHERE environment_id = :environment_id AND id = :id AND revision = :seen;

-- name: lock_roots
-- Every root of a slug, kept from changing until the transaction ends; rows that refer to them can still be written.
SELECT {integration_columns}
FROM integration i LEFT JOIN custom_provider p ON (p.environment_id, p.slug) = (i.environment_id, i.slug)
WHERE i.environment_id = :environment_id AND i.slug = :slug AND i.retired_at IS NULL
ORDER BY i.id
FOR NO KEY UPDATE OF i;

-- name: forget_client_secret
-- The other root of a slug whose address was changed: its secret was not entered for the new one.
UPDATE integration
   SET client_secret_ct = NULL, client_secret_kek_ref = NULL, client_secret_last4 = NULL, state = :state, state_reason = NULL,
       revision = revision + 1, updated_at = now()
 WHERE environment_id = :environment_id AND id = :id;

-- name: fence_connections
-- The token host or client registration changed: a refresh under way belongs to the old one.
UPDATE connection SET epoch = epoch + 1, fence = fence + 1, lease_holder = NULL, lease_until = '-infinity'
WHERE environment_id = :environment_id AND integration_id = :integration_id AND state <> 'disconnected';

-- name: upsert_custom_provider
-- A custom definition, shared by both roots of its slug.
INSERT INTO custom_provider (environment_id, slug, definition) VALUES (:environment_id, :slug, :definition)
ON CONFLICT (environment_id, slug) DO UPDATE SET definition = excluded.definition, updated_at = now();

-- name: custom_provider
-- A custom definition by slug.
SELECT definition FROM custom_provider WHERE environment_id = :environment_id AND slug = :slug;

-- name: retire_integration
-- Deleted by its operator. The client secret stays until the revocations under way have used it; `purge_retired_secrets` erases it.
UPDATE integration SET retired_at = now(), enabled = false, updated_at = now()
WHERE environment_id = :environment_id AND id = :id AND retired_at IS NULL;

-- name: purge_retired_secrets
-- Erase the client secrets of retired integrations that no pending revocation needs.
UPDATE integration i SET client_secret_ct = NULL, client_secret_kek_ref = NULL
WHERE i.retired_at IS NOT NULL AND i.client_secret_ct IS NOT NULL
  AND NOT EXISTS (SELECT FROM revocation_job j
                   WHERE (j.environment_id, j.integration_id) = (i.environment_id, i.id) AND j.status = 'pending');

-- name: delete_unused_custom_provider
-- A custom definition goes with its last root.
DELETE FROM custom_provider p
WHERE p.environment_id = :environment_id AND p.slug = :slug
  AND NOT EXISTS (SELECT FROM integration i WHERE (i.environment_id, i.slug) = (p.environment_id, p.slug) AND i.retired_at IS NULL);

-- name: claim_integration_connections
-- The next live connections of one integration, held until the transaction ends.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.integration_id = :integration_id AND c.state <> 'disconnected'
  AND (:position::uuid IS NULL OR c.id > :position)
ORDER BY c.id
LIMIT :most
FOR UPDATE OF c;

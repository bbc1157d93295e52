-- columns: connection_columns
-- What the product knows of a connection; secrets are fetched apart.
c.environment_id, c.id, c.integration_id, i.slug, c.user_id, c.organization_id, c.established_by_user_id, c.connection_role,
       c.auth_method, c.state, c.state_reason, c.state_cause, c.state_since, c.in_doubt, c.version, c.fence, c.epoch, c.refreshable,
       c.at_exp, c.scopes, c.account_id, c.account_name, c.account_tenant_id, c.instance_url, c.config, c.account_display_name,
       c.account_identifier, c.last_refreshed_at, c.last_refresh_error, c.created_at, c.updated_at, c.restored, c.rt_abs_exp

-- name: connection
-- One connection by id.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.id = :id;

-- name: lock_connection
-- One connection by id, held until the transaction ends.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.id = :id
FOR UPDATE OF c;

-- name: is_leased
-- Whether a refresh of this connection is under way.
SELECT lease_until >= now() FROM connection WHERE environment_id = :environment_id AND id = :id;

-- name: lock_compatibility_connection
-- The connection that fills an owner's compatibility slot, held until the transaction ends.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.integration_id = :integration_id AND c.user_key = :user_key
  AND c.organization_key = :organization_key AND c.state <> 'disconnected' AND c.connection_role = 'compatibility'
FOR UPDATE OF c;

-- name: lock_owner
-- Serialize the creation of connections for one owner and integration until the transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended(:owner, 0));

-- name: user_connections
-- Every live connection of a user in exactly one organization (or in none), for data_providers.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.user_key = :user_key AND c.organization_key = :organization_key
  AND c.state <> 'disconnected'
ORDER BY i.slug, c.connection_role, c.id;

-- name: insert_connection
-- A new connection with its first version still to be written.
INSERT INTO connection (environment_id, id, integration_id, user_id, organization_id, established_by_user_id, connection_role, auth_method,
                        state, state_reason, state_cause, version, fence, refreshable, at_exp, at_life_s, serve_until, refresh_after, rt_idle_exp,
                        rt_abs_exp, scopes, account_id, account_name, account_tenant_id, instance_url, config, account_display_name,
                        account_identifier)
VALUES (:environment_id, :id, :integration_id, :user_id, :organization_id, :established_by_user_id, :connection_role, 'oauth',
        :state, :state_reason, CASE WHEN :state = 'needs_reauthorization' THEN 'A caller set this state.' END, 1, 1, :refreshable, :at_exp, :at_life_s, :serve_until, :refresh_after, :rt_idle_exp,
        :rt_abs_exp, :scopes, :account_id, :account_name, :account_tenant_id, :instance_url, :config, :account_display_name,
        :account_identifier);

-- name: renew_connection
-- New tokens from a consent or an import: version, fence and epoch move, so that whatever was under way is defeated.
-- A label is kept where it is not mentioned (NULL) and cleared by an empty one.
UPDATE connection
   SET version = version + 1, fence = fence + 1, epoch = epoch + 1, state = :state, state_reason = :state_reason,
       state_cause = CASE WHEN :state = 'needs_reauthorization' THEN 'A caller set this state.' END, restored = false, noticed_days = NULL,
       state_since = CASE WHEN state = :state THEN state_since ELSE now() END, in_doubt = false, lease_holder = NULL,
       lease_until = '-infinity', retry_at = '-infinity', refreshable = :refreshable, at_exp = :at_exp, at_life_s = :at_life_s,
       serve_until = :serve_until, refresh_after = :refresh_after, rt_idle_exp = :rt_idle_exp, rt_abs_exp = :rt_abs_exp, scopes = :scopes,
       account_id = coalesce(:account_id, account_id), account_name = coalesce(:account_name, account_name),
       account_tenant_id = coalesce(:account_tenant_id, account_tenant_id), instance_url = :instance_url, config = :config,
       established_by_user_id = coalesce(:established_by_user_id, established_by_user_id),
       account_display_name = nullif(coalesce(:account_display_name, account_display_name), ''), last_refresh_error = NULL, updated_at = now()
 WHERE environment_id = :environment_id AND id = :id AND epoch = :epoch AND state <> 'disconnected';

-- name: update_connection_labels
-- Labels, granted scopes and, where given, a state a caller sets by hand. The epoch moves with the state.
UPDATE connection
   SET account_display_name = :account_display_name, account_identifier = :account_identifier, scopes = :scopes,
       state_since = CASE WHEN state = :state THEN state_since ELSE now() END,
       epoch = CASE WHEN state = :state THEN epoch ELSE epoch + 1 END, fence = CASE WHEN state = :state THEN fence ELSE fence + 1 END,
       state_cause = CASE WHEN :state <> 'needs_reauthorization' THEN NULL WHEN state = :state THEN state_cause ELSE 'A caller set this state.' END,
       state = :state, state_reason = :state_reason, updated_at = now()
 WHERE environment_id = :environment_id AND id = :id;

-- name: insert_secret_version
-- A sealed token set.
INSERT INTO secret_version (environment_id, connection_id, version_no, fence, state, received_at, ct, kek_ref, expires_at)
VALUES (:environment_id, :connection_id, :version_no, :fence, :state, :received_at, :ct, :kek_ref, :expires_at);

-- name: retire_secret_version
-- What was current becomes previous, kept for as long as the rotation class allows a replay; not at all where it does not.
WITH erased AS (
    DELETE FROM secret_version
     WHERE environment_id = :environment_id AND connection_id = :connection_id AND state = 'current' AND :keep::interval <= '0'
)
UPDATE secret_version SET state = 'previous', expires_at = now() + :keep::interval
 WHERE environment_id = :environment_id AND connection_id = :connection_id AND state = 'current' AND :keep::interval > '0';

-- name: current_secret
-- The sealed token set that is current.
SELECT environment_id, connection_id, version_no, fence, state, received_at, ct
FROM secret_version
WHERE environment_id = :environment_id AND connection_id = :connection_id AND state = 'current';

-- name: secrets_to_revoke
-- The sealed token sets of an ended connection that the provider has yet to be told of, newest first.
SELECT environment_id, connection_id, version_no, fence, state, received_at, ct
FROM secret_version
WHERE environment_id = :environment_id AND connection_id = :connection_id AND state = 'revoking'
ORDER BY received_at DESC;

-- name: erase_revoked_secrets
-- The provider has been told of these, or will never be: nothing of them stays. A late answer's tokens have a job of their own.
DELETE FROM secret_version s
USING unnest(:version_nos::bigint[], :fences::bigint[]) AS told (version_no, fence)
WHERE s.environment_id = :environment_id AND s.connection_id = :connection_id AND s.state = 'revoking'
  AND (s.version_no, s.fence) = (told.version_no, told.fence);

-- name: erase_orphans
-- Late token sets of an ended connection whose provider cannot be told of them.
DELETE FROM secret_version WHERE environment_id = :environment_id AND connection_id = :connection_id AND state = 'orphan';

-- name: forget_dead_refresh_token
-- A consent brought back a refresh token that was once refused.
DELETE FROM dead_rt WHERE environment_id = :environment_id AND rt_fp = :rt_fp;

-- name: purge_secrets
-- Erase versions past their time.
DELETE FROM secret_version WHERE expires_at < now();

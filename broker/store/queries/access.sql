-- name: hand_out
-- The hot path: for each asker, who they are, what they ask for, the sealed secret, and (where `serve` holds) the audit record of its
-- hand-out, all in one snapshot and one commit. `take` false only looks. `version` not null hands out that version and no other.
-- `refresh_due` leaves out what the gate would refuse anyway, so that a broken integration costs its callers no further statements.
WITH asked AS (
    SELECT *
    FROM unnest(:takes::boolean[], :digests::bytea[], :slugs::text[], :ownerships::text[], :user_keys::text[],
                :organization_keys::text[], :connection_ids::uuid[], :versions::bigint[], :min_ttls::integer[], :purposes::text[],
                :request_ids::text[], :ips::text[], :user_agents::text[])
         WITH ORDINALITY AS q (take, digest, slug, ownership, user_key, organization_key, connection_id, version, min_ttl, purpose,
                               request_id, ip, user_agent, n)
), found AS MATERIALIZED (
    SELECT q.n, q.purpose, q.request_id, q.ip, q.user_agent,
           k.environment_id, k.id AS key_id, k.scopes AS key_scopes,
           i.id AS integration_id, i.slug, i.enabled, i.scopes AS wanted_scopes, i.config::text AS integration_config,
           c.id AS connection_id, c.user_id, c.organization_id, c.auth_method, c.state, c.state_reason, c.state_since, c.in_doubt,
           c.version, c.refreshable, c.at_exp, c.scopes, c.account_id, c.account_name, c.instance_url, c.config::text AS config, s.ct,
           extract(epoch FROM c.at_exp - now())::double precision AS remaining,
           c.serve_until IS NULL OR c.serve_until > now() AS above_floor,
           c.refreshable AND coalesce(c.refresh_after <= now(), false) AND c.retry_at <= now() AND c.lease_until < now() AND NOT c.restored
               AND (i.state <> 'invalid' OR i.probe_at <= now()) AND i.suspect_since IS NULL
               AND NOT EXISTS (SELECT FROM deployment WHERE sealed_since IS NOT NULL) AS refresh_due,
           c.refreshable AND coalesce(c.refresh_after <= now(), false) AND c.last_refresh_error IS NOT NULL AS refresh_failing,
           c.at_exp IS NULL OR c.at_exp >= now() + make_interval(secs => q.min_ttl) AS lasts,
           coalesce(q.take AND 'tokens:read' = ANY (k.scopes) AND i.enabled AND c.state = 'connected' AND c.auth_method = 'oauth'
                    AND s.ct IS NOT NULL AND (q.version IS NULL OR q.version = c.version)
                    AND (c.serve_until IS NULL OR c.serve_until > now())
                    AND (c.at_exp IS NULL OR c.at_exp >= now() + make_interval(secs => q.min_ttl)), false) AS serve
    FROM asked q
    LEFT JOIN api_key k ON k.digest = q.digest AND k.revoked_at IS NULL AND k.expires_at > now()
    LEFT JOIN integration i ON i.environment_id = k.environment_id AND i.slug = q.slug AND i.ownership = q.ownership
         AND i.retired_at IS NULL
    LEFT JOIN connection c ON c.environment_id = k.environment_id AND c.integration_id = i.id
         AND c.user_key = q.user_key AND c.organization_key = q.organization_key AND c.state <> 'disconnected'
         AND CASE WHEN q.connection_id IS NULL THEN c.connection_role = 'compatibility' ELSE c.id = q.connection_id END
    LEFT JOIN secret_version s ON s.environment_id = c.environment_id AND s.connection_id = c.id AND s.state = 'current'
), recorded AS (
    INSERT INTO audit_record (environment_id, action, outcome, actor_type, actor_id, user_id, organization_id, connection_id,
                              version_no, provider, purpose, request_id, ip, user_agent)
    SELECT environment_id, 'token_issued', 'ok', 'api_key', key_id::text, user_id, organization_id, connection_id, version, slug,
           purpose, request_id, ip, left(user_agent, 200)
    FROM found
    WHERE serve
)
SELECT n, environment_id, key_id, key_scopes, integration_id, slug, enabled, wanted_scopes, integration_config, connection_id, user_id,
       organization_id, auth_method, state, state_reason, state_since, in_doubt, version, refreshable, at_exp, scopes, account_id,
       account_name, instance_url, config, ct, remaining, above_floor, refresh_due,
       refresh_failing, lasts, serve
FROM found
ORDER BY n;

-- name: withhold_token
-- A caller was refused with this version's token: it is at its end, so a refresh is due, and a replay that spared it need wait no longer.
UPDATE connection
   SET serve_until = now(), refresh_after = least(refresh_after, now()),
       retry_at = CASE WHEN in_doubt THEN least(retry_at, now()) ELSE retry_at END
 WHERE environment_id = :environment_id AND id = :connection_id AND version = :version AND state = 'connected'
   AND coalesce(serve_until > now(), true);

-- name: owner_connections
-- Every live connection of one owner at one integration, for the plural contract and connected_account_id.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.integration_id = :integration_id AND c.user_key = :user_key
  AND c.organization_key = :organization_key AND c.state <> 'disconnected'
ORDER BY c.connection_role, c.id;

-- name: last_ended_connection
-- The newest tombstone of an owner at an integration: why there is no connection any more.
SELECT {connection_columns}
FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE c.environment_id = :environment_id AND c.integration_id = :integration_id AND c.user_key = :user_key
  AND c.organization_key = :organization_key AND c.state = 'disconnected'
ORDER BY c.state_since DESC
LIMIT 1;

-- name: touch_api_keys
-- Note when keys were last used; called once a minute for the keys seen since.
UPDATE api_key SET last_used_at = now() WHERE id = ANY (:key_ids::uuid[]);

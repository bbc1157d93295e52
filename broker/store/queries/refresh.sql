-- name: take_lease
-- Transaction 1: the lease, the fence and the durable intent in one statement, or none of them. The database's clock decides.
WITH leased AS (
    UPDATE connection
       SET lease_holder = :holder, lease_until = now() + :lease::interval, fence = fence + 1
     WHERE environment_id = :environment_id AND id = :connection_id AND state = 'connected' AND version = :seen
       AND lease_until < now() AND retry_at <= now()
    RETURNING environment_id, id, fence, epoch
)
INSERT INTO refresh_intent (environment_id, id, connection_id, parent_id, fence, from_version, epoch, rt_fp, holder, started_at, deadline_at)
SELECT environment_id, :intent_id, id, :parent_id, fence, :seen, epoch, :rt_fp, :holder, now(), now() + :deadline::interval
FROM leased
RETURNING fence, epoch, started_at;

-- name: renew_lease
-- Keep the lease while the provider takes its time; no row means fenced off, and the call goes on all the same.
UPDATE connection SET lease_until = now() + :lease::interval
WHERE environment_id = :environment_id AND id = :connection_id AND fence = :fence AND lease_holder = :holder;

-- name: refresh_state
-- What somebody who waits for a refresh needs to know.
SELECT c.state, c.version, c.in_doubt, c.lease_until >= now() AS leased, c.retry_at > now() AS waiting,
       greatest(0, extract(epoch FROM c.retry_at - now()))::double precision AS retry_in,
       i.outcome AS last_outcome, i.error AS last_error
FROM connection c
LEFT JOIN LATERAL (
     SELECT outcome, error FROM refresh_intent r
      WHERE r.environment_id = c.environment_id AND r.connection_id = c.id ORDER BY r.fence DESC LIMIT 1) i ON true
WHERE c.environment_id = :environment_id AND c.id = :connection_id;

-- name: dead_refresh_token
-- Whether the provider has refused this refresh token for good.
SELECT true FROM dead_rt WHERE environment_id = :environment_id AND rt_fp = :rt_fp;

-- name: insert_receipt
-- The provider's answer, sealed, before anybody parses it.
INSERT INTO receipt (environment_id, intent_id, complete, http_status, received_at, ct, kek_ref)
VALUES (:environment_id, :intent_id, :complete, :http_status, now(), :ct, :kek_ref)
ON CONFLICT DO NOTHING;

-- name: commit_refresh
-- Transaction 2: compare and swap on fence, version and epoch. No row: somebody was faster, and the answer becomes an orphan.
UPDATE connection
   SET version = version + 1, at_exp = :at_exp, at_life_s = :at_life_s, serve_until = :serve_until, refresh_after = :refresh_after,
       rt_idle_exp = coalesce(:rt_idle_exp, rt_idle_exp), rt_abs_exp = coalesce(:rt_abs_exp, rt_abs_exp), refreshable = :refreshable,
       scopes = coalesce(:scopes::text[], scopes), instance_url = :instance_url, in_doubt = false, lease_until = '-infinity',
       lease_holder = NULL, retry_at = '-infinity', last_refreshed_at = now(), last_refresh_error = NULL, updated_at = now()
 WHERE environment_id = :environment_id AND id = :connection_id AND fence = :fence AND version = :version AND epoch = :epoch
   AND state = 'connected';

-- name: finish_intent
-- What the attempt came to; its receipt counts as parsed.
WITH parsed AS (
    UPDATE receipt SET parsed_at = now() WHERE environment_id = :environment_id AND intent_id = :id
)
UPDATE refresh_intent SET outcome = :outcome, error = :error, finished_at = now()
WHERE environment_id = :environment_id AND id = :id;

-- name: release_lease
-- A failed attempt lets go, under the same condition as a commit, so that a loser never overwrites a winner's success.
UPDATE connection
   SET lease_until = '-infinity', lease_holder = NULL, in_doubt = in_doubt OR :in_doubt::boolean, last_refresh_error = :error,
       retry_at = CASE WHEN :until_floor::boolean THEN coalesce(serve_until, now()) ELSE now() + :delay::interval END
 WHERE environment_id = :environment_id AND id = :connection_id AND fence = :fence AND version = :version;

-- name: unaccounted_sending
-- Whether this refresh token was ever sent without an answer becoming known.
SELECT true
FROM refresh_intent
WHERE environment_id = :environment_id AND connection_id = :connection_id AND rt_fp = :rt_fp AND id <> :intent_id
  AND outcome IN ('pending', 'in_doubt')
LIMIT 1;

-- name: condemn_connection
-- The provider no longer honours the grant, or answers for another account: callers learn it at once, with its cause.
UPDATE connection
   SET state = 'needs_reauthorization', state_reason = :reason, state_cause = :cause, state_since = now(), in_doubt = false,
       fence = fence + 1, lease_until = '-infinity', lease_holder = NULL, last_refresh_error = :error, updated_at = now()
 WHERE environment_id = :environment_id AND id = :connection_id AND version = :version AND epoch = :epoch AND state = 'connected';

-- name: insert_dead_refresh_token
-- Never send this one again.
INSERT INTO dead_rt (environment_id, rt_fp, intent_id) VALUES (:environment_id, :rt_fp, :intent_id) ON CONFLICT DO NOTHING;

-- name: last_intent_for_token
-- The latest attempt with this refresh token, which a replay names as its parent.
SELECT id FROM refresh_intent
WHERE environment_id = :environment_id AND connection_id = :connection_id AND rt_fp = :rt_fp
ORDER BY fence DESC LIMIT 1;

-- name: mark_integration_invalid
-- The provider refuses our client credentials; no connection changes.
UPDATE integration SET state = 'invalid', state_reason = :error, updated_at = now()
WHERE environment_id = :environment_id AND id = :id AND state = 'valid';

-- name: mark_integration_valid
-- A refresh or an exchange worked: the client credentials are good.
UPDATE integration SET state = 'valid', state_reason = NULL, updated_at = now()
WHERE environment_id = :environment_id AND id = :id AND state = 'invalid';

-- columns: attempt_columns
-- One attempt to refresh, as the engine and the reconciler know it.
r.environment_id, r.id AS intent_id, r.connection_id, r.fence, r.from_version, r.epoch, r.rt_fp, r.started_at AS sent_at

-- name: claim_unparsed_receipt
-- An answer that was stored and never taken up, of an attempt whose holder is gone.
SELECT {attempt_columns}, p.ct, p.complete
FROM receipt p JOIN refresh_intent r ON (r.environment_id, r.id) = (p.environment_id, p.intent_id)
WHERE p.parsed_at IS NULL AND p.complete AND r.outcome = 'pending' AND r.deadline_at < now()
ORDER BY p.received_at
LIMIT 1
FOR UPDATE OF p SKIP LOCKED;

-- name: postpone_intent
-- Its stored answer cannot be opened now; look again later.
UPDATE refresh_intent SET deadline_at = now() + :wait::interval WHERE environment_id = :environment_id AND id = :id;

-- name: claim_silent_intent
-- An attempt past its deadline of which no answer was stored: it may or may not have reached the provider.
SELECT {attempt_columns}
FROM refresh_intent r
WHERE r.outcome = 'pending' AND r.deadline_at < now()
  AND NOT EXISTS (SELECT FROM receipt p WHERE (p.environment_id, p.intent_id) = (r.environment_id, r.id) AND p.complete)
ORDER BY r.deadline_at
LIMIT 1
FOR UPDATE OF r SKIP LOCKED;

-- name: orphans_to_settle
-- Token sets that came too late for their lease, of connections that have moved on.
SELECT s.environment_id, s.connection_id, s.version_no, s.fence, s.state, s.received_at, s.ct
FROM secret_version s JOIN connection c ON (c.environment_id, c.id) = (s.environment_id, s.connection_id)
WHERE s.state = 'orphan' AND c.state = 'disconnected'
ORDER BY s.received_at DESC
LIMIT :most;

-- name: purge_receipts
-- Answers that were taken up long ago.
DELETE FROM receipt WHERE parsed_at < now() - interval '1 day';

-- name: notify
-- Wake whoever waits for this connection; heard after the commit.
SELECT pg_notify('penstock', :payload);

-- name: condemn_orphans
-- Late token sets of an ended connection wait for their revocation.
UPDATE secret_version SET state = 'revoking', expires_at = now() + :keep::interval
WHERE environment_id = :environment_id AND connection_id = :connection_id AND state = 'orphan';

-- name: idle_connections
-- Connections whose refresh token is past 60 % ± 20 % of its idle life, spread by a hash of the id; each at most once an hour.
SELECT c.environment_id, c.id
FROM connection c
WHERE c.state = 'connected' AND c.refreshable AND NOT c.in_doubt AND c.rt_idle_exp IS NOT NULL AND c.retry_at <= now()
  AND coalesce(c.last_refreshed_at, c.created_at) < now() - interval '1 hour'
  AND now() > coalesce(c.last_refreshed_at, c.created_at)
            + (c.rt_idle_exp - coalesce(c.last_refreshed_at, c.created_at)) * (0.4 + 0.4 * (abs(hashtextextended(c.id::text, 0)) % 1000) / 1000.0)
ORDER BY c.rt_idle_exp
LIMIT :most;

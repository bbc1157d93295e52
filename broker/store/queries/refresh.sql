-- name: take_lease
-- Transaction 1: the lease, the fence and the durable intent in one statement, or none of them. The database's clock decides, and this is
-- the one gate: nothing is sent for a connection that is leased, waits, or holds a token of a backup, with credentials of before an edit,
-- nor while the engine is sealed, nor in a database that nobody confirmed: a session may have outlived a failover.
-- An attempt of which nothing is settled, by a holder that died or was fenced off, may have spent the token: it is ruled on first.
-- Where our credentials were refused, one refresh in a while tries them again, of whatever class: who refuses the client has not looked at
-- the token; a connection in doubt does so only when nobody else has for ten minutes. Where grants are refused by the dozen, one in ten goes
-- on.
WITH probe AS (
    SELECT i.id FROM integration i JOIN connection c ON (c.environment_id, c.integration_id) = (i.environment_id, i.id)
     WHERE c.environment_id = :environment_id AND c.id = :connection_id AND i.state = 'invalid' AND i.probe_at <= now()
       FOR NO KEY UPDATE OF i SKIP LOCKED
), leased AS (
    UPDATE connection c
       SET lease_holder = :holder, lease_until = now() + :lease::interval, fence = c.fence + 1
      FROM integration i
     WHERE c.environment_id = :environment_id AND c.id = :connection_id AND c.state = 'connected' AND c.version = :seen
       AND c.lease_until < now() AND c.retry_at <= now() AND NOT c.restored
       AND (i.environment_id, i.id) = (c.environment_id, c.integration_id) AND i.revision = :revision
       AND (i.state <> 'invalid' OR (EXISTS (SELECT FROM probe) AND (NOT c.in_doubt OR i.probe_at <= now() - interval '10 minutes')))
       AND (i.suspect_since IS NULL OR random() < 0.1)
       AND EXISTS (SELECT FROM deployment
                    WHERE sealed_since IS NULL AND (system_identifier, timeline_id) = ({this_system}, {this_timeline}))
       AND NOT EXISTS (SELECT FROM refresh_intent r
                        WHERE r.environment_id = :environment_id AND r.connection_id = :connection_id AND r.from_version = :seen
                          AND r.outcome = 'pending')
    RETURNING c.environment_id, c.id, c.fence, c.epoch, c.integration_id, i.revision, i.state = 'invalid' AS probing
), probed AS (
    UPDATE integration i SET probe_at = now() + :probe_every::interval
      FROM leased l WHERE l.probing AND (i.environment_id, i.id) = (l.environment_id, l.integration_id)
)
INSERT INTO refresh_intent (environment_id, id, connection_id, parent_id, fence, from_version, epoch, rt_fp, holder, started_at, deadline_at,
                            integration_id, integration_revision)
SELECT environment_id, :intent_id, id, :parent_id, fence, :seen, epoch, :rt_fp, :holder, now(), now() + :deadline::interval,
       integration_id, revision
FROM leased
RETURNING fence, epoch, started_at;

-- name: renew_lease
-- Keep the lease while the provider takes its time; no row means fenced off, and the call goes on all the same.
UPDATE connection SET lease_until = now() + :lease::interval
WHERE environment_id = :environment_id AND id = :connection_id AND fence = :fence AND lease_holder = :holder;

-- name: refresh_state
-- What somebody who waits for a refresh needs to know. `busy`: an attempt is under way, or not ruled on yet. `retry_in`: not before so many
-- seconds, whatever is waited for: a pause, a probe of our credentials, an operator's word.
SELECT c.state, c.version, c.lease_until >= now() OR coalesce(r.outcome = 'pending' AND r.from_version = c.version, false) AS busy,
       extract(epoch FROM greatest(interval '0', least(c.retry_at, now() + interval '1 day') - now(),
               CASE WHEN i.state = 'invalid' THEN least(i.probe_at, now() + interval '1 day') - now() END,
               CASE WHEN c.restored OR i.suspect_since IS NOT NULL OR d.sealed_since IS NOT NULL THEN interval '30 seconds' END)
       )::double precision AS retry_in,
       i.state = 'invalid' OR coalesce(r.outcome = 'config_fault' AND c.retry_at > now(), false) AS misconfigured
FROM connection c
JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
CROSS JOIN deployment d
LEFT JOIN LATERAL (
     SELECT outcome, from_version FROM refresh_intent r
      WHERE r.environment_id = c.environment_id AND r.connection_id = c.id ORDER BY r.fence DESC LIMIT 1) r ON true
WHERE c.environment_id = :environment_id AND c.id = :connection_id;

-- name: dead_refresh_token
-- Whether the provider has refused this refresh token for good.
SELECT true FROM dead_rt WHERE environment_id = :environment_id AND rt_fp = :rt_fp;

-- name: insert_receipt
-- The provider's answer, sealed, before anybody parses it; from the spool it may come twice, or when all is settled and nobody needs to take
-- it up. No row: this database knows nothing of the attempt.
WITH attempt AS (
    SELECT environment_id, id, outcome FROM refresh_intent WHERE environment_id = :environment_id AND id = :intent_id
), stored AS (
    INSERT INTO receipt (environment_id, intent_id, complete, http_status, received_at, ct, kek_ref, parsed_at)
    SELECT environment_id, id, :complete, :http_status, :received_at, :ct, :kek_ref,
           CASE WHEN outcome <> 'pending' AND NOT (outcome = 'in_doubt' AND :complete) THEN now() END
    FROM attempt
    ON CONFLICT DO NOTHING
)
SELECT outcome FROM attempt;

-- name: commit_refresh
-- Transaction 2: compare and swap on fence, version and epoch. No row: somebody was faster, and the answer becomes an orphan.
-- An absolute end is never put off by a refresh. A token that is at its end when it comes is not asked for again at once.
UPDATE connection
   SET version = version + 1, at_exp = :at_exp, at_life_s = :at_life_s, serve_until = :serve_until, refresh_after = :refresh_after,
       rt_idle_exp = CASE WHEN :rotated::boolean THEN :rt_idle_exp ELSE coalesce(:rt_idle_exp, rt_idle_exp) END,
       rt_abs_exp = coalesce(rt_abs_exp, :rt_abs_exp), refreshable = :refreshable,
       scopes = coalesce(:scopes::text[], scopes), instance_url = :instance_url, in_doubt = false, lease_until = '-infinity',
       lease_holder = NULL, retry_at = CASE WHEN :serve_until <= now() THEN now() + interval '5 seconds' ELSE '-infinity' END, last_refreshed_at = now(), last_refresh_error = NULL, updated_at = now()
 WHERE environment_id = :environment_id AND id = :connection_id AND fence = :fence AND version = :version AND epoch = :epoch
   AND state = 'connected';

-- name: lock_intent
-- What an attempt has come to so far, held while it is settled.
SELECT outcome FROM refresh_intent WHERE environment_id = :environment_id AND id = :id FOR UPDATE;

-- name: finish_intent
-- What the attempt came to; its receipt counts as parsed.
WITH parsed AS (
    UPDATE receipt SET parsed_at = now() WHERE environment_id = :environment_id AND intent_id = :id
)
UPDATE refresh_intent SET outcome = :outcome, error = :error, finished_at = now()
WHERE environment_id = :environment_id AND id = :id;

-- name: release_lease
-- A failed attempt lets go, under the same condition as a commit, so that a loser never overwrites a winner's success; that a token may be
-- spent is noted whoever holds the lease now. The floor is waited for only as long as there is one to come; a token without an end has none.
UPDATE connection
   SET lease_until = CASE WHEN fence = :fence THEN '-infinity' ELSE lease_until END,
       lease_holder = CASE WHEN fence = :fence THEN NULL ELSE lease_holder END,
       in_doubt = in_doubt OR :in_doubt::boolean, last_refresh_error = :error,
       serve_until = CASE WHEN :spares_token::boolean THEN serve_until ELSE least(serve_until, now()) END,
       retry_at = CASE WHEN :at_floor::boolean THEN greatest(coalesce(serve_until, now() + interval '1 day'), now() + :delay::interval)
                       ELSE now() + :delay::interval END
 WHERE environment_id = :environment_id AND id = :connection_id AND version = :version AND state = 'connected'
   AND (fence = :fence OR :in_doubt::boolean)
RETURNING extract(epoch FROM retry_at - now())::double precision;

-- name: drop_lease
-- Let go without a word on when the next attempt may be.
UPDATE connection SET lease_until = '-infinity', lease_holder = NULL
WHERE environment_id = :environment_id AND id = :connection_id AND fence = :fence;

-- name: unaccounted_sendings
-- How often the refresh token of a version was sent without its outcome becoming known, and for how long that has been so.
SELECT count(*) AS count, coalesce(now() - min(started_at), '0') AS since_first
FROM refresh_intent
WHERE environment_id = :environment_id AND connection_id = :connection_id AND from_version = :version
  AND outcome IN ('pending', 'in_doubt');

-- name: unaccounted_sending
-- Whether another sending of this version's refresh token than the one at hand is still unaccounted for; one of before a restore left no
-- row but the doubt.
SELECT true
WHERE EXISTS (SELECT FROM refresh_intent
               WHERE environment_id = :environment_id AND connection_id = :connection_id AND from_version = :version
                 AND id <> :intent_id AND outcome IN ('pending', 'in_doubt'))
   OR EXISTS (SELECT FROM connection
               WHERE environment_id = :environment_id AND id = :connection_id AND version = :version AND in_doubt);

-- name: condemn_connection
-- The provider no longer honours the grant, or answers for another account: callers learn it at once, with its cause.
UPDATE connection
   SET state = 'needs_reauthorization', state_reason = :reason, state_cause = :cause, state_since = now(), in_doubt = false,
       fence = fence + 1, lease_until = '-infinity', lease_holder = NULL, last_refresh_error = :error, updated_at = now()
 WHERE environment_id = :environment_id AND id = :connection_id AND version = :version AND epoch = :epoch AND state = 'connected';

-- name: insert_dead_refresh_token
-- Never send this one again.
INSERT INTO dead_rt (environment_id, rt_fp, intent_id) VALUES (:environment_id, :rt_fp, :intent_id) ON CONFLICT DO NOTHING;

-- name: last_sending
-- The latest attempt with this version's refresh token, which a replay names as its parent.
SELECT id FROM refresh_intent
WHERE environment_id = :environment_id AND connection_id = :connection_id AND from_version = :version
ORDER BY fence DESC LIMIT 1;

-- name: refused_alone
-- Whether our credentials work for others: a refresh with the same ones succeeded within the hour, and since then no connection but this one
-- was refused with them.
SELECT EXISTS (
    SELECT FROM (SELECT max(finished_at) AS at FROM refresh_intent r
                  WHERE r.environment_id = :environment_id AND r.integration_id = :integration_id AND r.integration_revision = :revision
                    AND r.outcome = 'committed' AND r.finished_at > now() - interval '1 hour') AS worked
    WHERE worked.at IS NOT NULL
      AND NOT EXISTS (SELECT FROM refresh_intent f
                       WHERE f.environment_id = :environment_id AND f.integration_id = :integration_id AND f.outcome = 'config_fault'
                         AND f.integration_revision = :revision AND f.connection_id <> :connection_id AND f.finished_at > worked.at));

-- name: mark_integration_invalid
-- The provider refuses our client credentials: no connection changes, and none is refreshed but for a probe now and then. Those of an edit
-- since the request was made are not blamed.
UPDATE integration SET state = 'invalid', state_reason = :error, probe_at = now() + :probe_every::interval,
       invalid_since = CASE WHEN state = 'invalid' THEN invalid_since ELSE now() END
WHERE environment_id = :environment_id AND id = :id AND revision = :revision AND state IN ('valid', 'invalid');

-- name: integration_revision
-- How often an integration was changed.
SELECT revision FROM integration WHERE environment_id = :environment_id AND id = :id;

-- name: forget_waits
-- The client credentials were entered anew: who was told to wait for that, or for anything but a floor, waits no longer.
UPDATE connection SET retry_at = '-infinity'
WHERE environment_id = :environment_id AND integration_id = :integration_id AND state = 'connected' AND retry_at > now() AND NOT in_doubt;

-- name: mark_integration_valid
-- A refresh or an exchange worked: the client credentials are good.
UPDATE integration SET state = 'valid', state_reason = NULL
WHERE environment_id = :environment_id AND id = :id AND state = 'invalid';

-- columns: attempt_columns
-- One attempt to refresh, as the engine and the reconciler know it.
r.environment_id, r.id AS intent_id, r.connection_id, r.fence, r.from_version, r.epoch, r.rt_fp, r.started_at AS sent_at

-- name: claim_unparsed_receipt
-- An answer that was stored and not taken up in time. Should its holder be at it still, the second to settle finds it settled. Whoever
-- claims it has a minute before others may.
WITH claimed AS (
    SELECT r.environment_id, r.id
    FROM receipt p JOIN refresh_intent r ON (r.environment_id, r.id) = (p.environment_id, p.intent_id)
    WHERE p.parsed_at IS NULL AND p.complete AND r.outcome IN ('pending', 'in_doubt') AND r.deadline_at < now()
    ORDER BY r.deadline_at
    LIMIT 1
    FOR UPDATE OF r SKIP LOCKED
)
UPDATE refresh_intent r SET deadline_at = now() + interval '1 minute'
FROM claimed, receipt p
WHERE (r.environment_id, r.id) = (claimed.environment_id, claimed.id) AND (p.environment_id, p.intent_id) = (r.environment_id, r.id)
RETURNING {attempt_columns}, p.ct, p.received_at;

-- name: claim_silent_intent
-- An attempt of which no whole answer was stored, past its deadline, its lease over by time or by fence: it may or may not have reached
-- the provider. Whoever claims it has a minute before others may.
WITH claimed AS (
    SELECT r.environment_id, r.id
    FROM refresh_intent r JOIN connection c ON (c.environment_id, c.id) = (r.environment_id, r.connection_id)
    WHERE r.outcome = 'pending' AND r.deadline_at < now() AND (c.lease_until < now() OR c.fence <> r.fence)
      AND NOT EXISTS (SELECT FROM receipt p WHERE (p.environment_id, p.intent_id) = (r.environment_id, r.id) AND p.complete)
    ORDER BY r.deadline_at
    LIMIT 1
    FOR UPDATE OF r SKIP LOCKED
)
UPDATE refresh_intent r SET deadline_at = now() + interval '1 minute'
FROM claimed
WHERE (r.environment_id, r.id) = (claimed.environment_id, claimed.id)
RETURNING {attempt_columns};

-- columns: late_sets
-- Late token sets, with their connection and the attempt that brought them.
secret_version s
    JOIN connection c ON (c.environment_id, c.id) = (s.environment_id, s.connection_id)
    JOIN refresh_intent r ON (r.environment_id, r.connection_id, r.fence) = (s.environment_id, s.connection_id, s.fence)

-- columns: adoptable
-- A late token set that may become current: the successor of the version in use, whatever was edited meanwhile; any of the same consent
-- once that version's token was refused; or one whose answer was given up for lost.
s.state = 'orphan' AND (
      (c.state = 'connected' AND s.version_no = c.version + 1)
   OR (c.state = 'connected' AND r.epoch = c.epoch
       AND EXISTS (SELECT FROM refresh_intent d
                    WHERE (d.environment_id, d.connection_id, d.from_version) = (c.environment_id, c.id, c.version) AND d.outcome = 'dead'))
   OR (c.state = 'needs_reauthorization' AND c.state_reason = 'lost_response' AND r.epoch = c.epoch))

-- name: adoptable_orphan
-- The newest late token set that may become current while nobody refreshes, held with its connection.
SELECT s.environment_id, s.connection_id, s.version_no, s.fence, s.state, s.received_at, s.ct
FROM {late_sets}
WHERE s.environment_id = :environment_id AND s.connection_id = :connection_id AND c.lease_until < now() AND {adoptable}
ORDER BY s.received_at DESC, s.fence DESC
LIMIT 1
FOR UPDATE OF c, s;

-- name: adoptable_after_verdict
-- Whether a late token set stands in for a refresh token that was refused just now.
SELECT true
FROM {late_sets}
WHERE s.environment_id = :environment_id AND s.connection_id = :connection_id AND s.state = 'orphan' AND c.state = 'connected'
  AND (s.version_no = c.version + 1 OR r.epoch = c.epoch)
LIMIT 1;

-- name: adopt_orphan
-- A late token set becomes the next version. Its access token's end is not known, so it counts as ended: a refresh comes first.
UPDATE connection
   SET version = version + 1, fence = fence + 1, state = 'connected', state_reason = NULL, state_cause = NULL,
       state_since = CASE WHEN state = 'connected' THEN state_since ELSE now() END, in_doubt = false, at_exp = now(), serve_until = now(),
       refresh_after = now(), refreshable = true, instance_url = :instance_url, lease_holder = NULL, lease_until = '-infinity',
       retry_at = '-infinity', last_refresh_error = NULL, updated_at = now()
 WHERE environment_id = :environment_id AND id = :connection_id AND version = :version;

-- name: erase_orphan
-- It was adopted, or is good for nothing.
DELETE FROM secret_version
WHERE environment_id = :environment_id AND connection_id = :connection_id AND version_no = :version_no AND fence = :fence AND state = 'orphan';

-- name: orphans_to_settle
-- Connections with late token sets that something is to be done about: one may be adopted, or the consent they belong to is over. `edited`:
-- the provider was since they were sent for, so that its address may not be theirs. `renewed`: a newer consent is there.
SELECT c.environment_id, c.id, bool_or({adoptable}) AS adoptable, bool_or(i.revision <> r.integration_revision) AS edited,
       c.state = 'connected' AS renewed
FROM {late_sets} JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
WHERE s.state = 'orphan' AND c.lease_until < now() AND (c.state = 'disconnected' OR r.epoch <> c.epoch OR ({adoptable}))
GROUP BY c.environment_id, c.id, c.state
ORDER BY c.environment_id, c.id
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

-- name: doubts_due
-- Connections in doubt whose refresh token may be sent again now, those first that became due last; of one integration only a few.
SELECT environment_id, id, version
FROM (SELECT c.environment_id, c.id, c.version, c.retry_at,
             row_number() OVER (PARTITION BY c.environment_id, c.integration_id ORDER BY c.retry_at DESC, c.id) AS place
        FROM connection c JOIN integration i ON (i.environment_id, i.id) = (c.environment_id, c.integration_id)
       WHERE c.state = 'connected' AND c.in_doubt AND c.refreshable AND NOT c.restored AND c.retry_at <= now() AND c.lease_until < now()
         AND i.state <> 'invalid' AND i.suspect_since IS NULL) due
WHERE place <= :most_per_integration
ORDER BY retry_at DESC
LIMIT :most;

-- name: idle_connections
-- Connections whose refresh token is past 60 % ± 20 % of its idle life, spread by a hash of the id, and has not lapsed; each at most once an
-- hour, and of one integration only a few, so that one that fails leaves room for the others; none of those that were tried in vain.
SELECT environment_id, id, version
FROM (SELECT c.environment_id, c.id, c.version, c.rt_idle_exp,
             row_number() OVER (PARTITION BY c.environment_id, c.integration_id ORDER BY c.rt_idle_exp, c.id) AS place
        FROM connection c
       WHERE c.state = 'connected' AND c.refreshable AND NOT c.in_doubt AND c.rt_idle_exp > now() AND c.retry_at <= now()
         AND c.lease_until < now() AND c.id <> ALL (:put_off::uuid[])
         AND coalesce(c.last_refreshed_at, c.created_at) < now() - interval '1 hour'
         AND now() > coalesce(c.last_refreshed_at, c.created_at) + (c.rt_idle_exp - coalesce(c.last_refreshed_at, c.created_at))
                   * (0.4 + 0.4 * (abs(hashtextextended(c.id::text, 0)) % 1000) / 1000.0)) due
WHERE place <= :most_per_integration
ORDER BY rt_idle_exp
LIMIT :most;

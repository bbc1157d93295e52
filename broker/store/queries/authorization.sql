-- columns: request_columns
-- An authorization request as the flow knows it.
r.environment_id, r.id, r.integration_id, i.slug, r.public_state, r.browser_digest, r.caller_type, r.caller_id, r.owner, r.user_id,
       r.organization_id, r.intent, r.target_id, r.target_epoch, r.account_display_name, r.code_challenge, r.return_to, r.config,
       r.endpoints, r.redirect_uri, r.client_id, r.scopes, r.verifier_ct, r.status, r.code_ct, r.callback, r.error_code, r.created_at,
       r.expires_at

-- name: insert_authorization_request
-- A flow begins: everything the callback will need is fixed now.
INSERT INTO authorization_request (environment_id, id, integration_id, ticket_digest, public_state, caller_type, caller_id, owner, user_id,
                                   organization_id, intent, target_id, target_epoch, account_display_name, code_challenge, return_to,
                                   config, endpoints, redirect_uri, client_id, scopes, expires_at)
VALUES (:environment_id, :id, :integration_id, :ticket_digest, :public_state, :caller_type, :caller_id, :owner, :user_id,
        :organization_id, :intent, :target_id, :target_epoch, :account_display_name, :code_challenge, :return_to,
        :config, :endpoints, :redirect_uri, :client_id, :scopes, now() + :life::interval);

-- name: request_by_ticket
-- The flow that a connect link names; looking does not use it up.
SELECT {request_columns}, r.expires_at <= now() AS expired
FROM authorization_request r JOIN integration i ON (i.environment_id, i.id) = (r.environment_id, r.integration_id)
WHERE r.ticket_digest = :ticket_digest;

-- name: send_to_provider
-- The person agreed: fix state, verifier and browser. May be repeated until the provider has answered.
UPDATE authorization_request
   SET status = 'redirected', state_digest = :state_digest, browser_digest = :browser_digest, verifier_ct = :verifier_ct,
       verifier_kek_ref = :verifier_kek_ref
 WHERE environment_id = :environment_id AND id = :id AND status IN ('started', 'redirected') AND expires_at > now();

-- name: claim_state
-- The provider's answer came back: its state works once, whatever happens next.
UPDATE authorization_request r
   SET status = 'returned', state_digest = NULL
  FROM integration i
 WHERE (i.environment_id, i.id) = (r.environment_id, r.integration_id) AND r.state_digest = :state_digest
   AND r.status = 'redirected' AND r.expires_at > now()
RETURNING {request_columns}, false AS expired;

-- name: hold_code
-- Session binding: keep the provider's code, sealed, until finish proves the verifier; never longer than the code lives.
UPDATE authorization_request
   SET connect_code_digest = :connect_code_digest, code_ct = :code_ct, code_kek_ref = :code_kek_ref, callback = :callback,
       expires_at = now() + :life::interval
 WHERE environment_id = :environment_id AND id = :id AND status = 'returned';

-- name: claim_connect_code
-- Finish: the connect code works once, right verifier or wrong.
UPDATE authorization_request r
   SET status = 'finishing', connect_code_digest = NULL
  FROM integration i
 WHERE (i.environment_id, i.id) = (r.environment_id, r.integration_id) AND r.connect_code_digest = :connect_code_digest
   AND r.status = 'returned' AND r.expires_at > now() AND r.environment_id = :environment_id
RETURNING {request_columns}, false AS expired;

-- name: settle_request
-- How a flow ended; nothing secret of it stays but held tokens, and those for a day.
UPDATE authorization_request
   SET status = :status, error_code = :error_code, verifier_ct = NULL, verifier_kek_ref = NULL, code_ct = NULL, code_kek_ref = NULL,
       connect_code_digest = NULL, state_digest = NULL, held_ct = :held_ct, held_kek_ref = :held_kek_ref,
       held_account_id = :held_account_id,
       expires_at = CASE WHEN :held_ct::bytea IS NULL THEN expires_at ELSE now() + interval '24 hours' END
 WHERE environment_id = :environment_id AND id = :id;

-- name: expire_requests
-- Flows that nobody finished: their sealed codes and verifiers are destroyed. Nothing is to be revoked, nothing was exchanged.
-- An exchange under way gets two minutes more than it can take.
WITH late AS (
    SELECT environment_id, id, status IN ('returned', 'finishing') AS came_back
      FROM authorization_request
     WHERE expires_at < now()
       AND (status IN ('started', 'redirected') OR status = 'returned' AND code_ct IS NOT NULL
            OR status IN ('returned', 'finishing') AND expires_at < now() - interval '2 minutes')
       FOR UPDATE SKIP LOCKED
)
UPDATE authorization_request r
   SET status = 'expired', error_code = 'authorization_state_expired', verifier_ct = NULL, verifier_kek_ref = NULL, code_ct = NULL,
       code_kek_ref = NULL, connect_code_digest = NULL, state_digest = NULL
  FROM late, integration i
 WHERE (r.environment_id, r.id) = (late.environment_id, late.id)
   AND (i.environment_id, i.id) = (r.environment_id, r.integration_id)
RETURNING {request_columns}, true AS expired, late.came_back;

-- name: expired_holds
-- Flows that held another account's tokens for a decision that never came, locked.
SELECT {request_columns}, true AS expired, r.held_ct, r.held_account_id
FROM authorization_request r JOIN integration i ON (i.environment_id, i.id) = (r.environment_id, r.integration_id)
WHERE r.status = 'held' AND r.expires_at < now()
LIMIT 100
FOR UPDATE OF r SKIP LOCKED;

-- name: purge_requests
-- Flows that ended long ago.
DELETE FROM authorization_request WHERE expires_at < now() - interval '30 days';

-- name: lock_usable_integration
-- An integration that people may connect through, kept from changing until the transaction ends.
SELECT id FROM integration WHERE environment_id = :environment_id AND id = :id AND enabled AND retired_at IS NULL FOR SHARE;

-- name: lock_request_status
-- Where a flow stands, kept from changing until the transaction ends: an offboarding waits for the save, or prevents it.
SELECT status FROM authorization_request WHERE environment_id = :environment_id AND id = :id FOR UPDATE;

-- name: grant_in_use
-- Whether a working connection lives on a grant: the same client's, for the same account, or where accounts are unknown the same owner.
SELECT EXISTS (
    SELECT FROM connection c
      JOIN integration theirs ON (theirs.environment_id, theirs.id) = (c.environment_id, c.integration_id)
      JOIN integration ours ON (ours.environment_id, ours.slug, ours.client_id) = (theirs.environment_id, theirs.slug, theirs.client_id)
     WHERE ours.environment_id = :environment_id AND ours.id = :integration_id AND c.state = 'connected'
       AND coalesce(c.account_id = :account_id, c.user_key = :user_key AND c.organization_key = :organization_key));

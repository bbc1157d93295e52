-- columns: request_columns
-- An authorization request as the flow knows it.
r.environment_id, r.id, r.integration_id, r.public_state, r.browser_digest, r.caller_type, r.caller_id, r.owner, r.user_id,
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
FROM authorization_request r
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
 WHERE r.state_digest = :state_digest AND r.status = 'redirected' AND r.expires_at > now()
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
 WHERE r.connect_code_digest = :connect_code_digest AND r.status = 'returned' AND r.expires_at > now()
   AND r.environment_id = :environment_id
RETURNING {request_columns}, false AS expired;

-- name: settle_request
-- How a flow ended; nothing secret of it stays but held tokens.
UPDATE authorization_request
   SET status = :status, error_code = :error_code, verifier_ct = NULL, verifier_kek_ref = NULL, code_ct = NULL, code_kek_ref = NULL,
       connect_code_digest = NULL, state_digest = NULL, held_ct = :held_ct, held_kek_ref = :held_kek_ref,
       expires_at = CASE WHEN :held_ct::bytea IS NULL THEN expires_at ELSE now() + interval '24 hours' END
 WHERE environment_id = :environment_id AND id = :id;

-- name: expire_requests
-- Flows that nobody finished: their sealed codes and verifiers are destroyed. Nothing is to be revoked, nothing was exchanged.
UPDATE authorization_request r
   SET status = 'expired', error_code = 'authorization_state_expired', verifier_ct = NULL, verifier_kek_ref = NULL, code_ct = NULL,
       code_kek_ref = NULL, connect_code_digest = NULL, state_digest = NULL, held_ct = NULL, held_kek_ref = NULL
 WHERE r.expires_at < now() AND r.status IN ('started', 'redirected', 'returned', 'finishing')
RETURNING {request_columns}, true AS expired;

-- name: purge_requests
-- Held tokens past their day, and flows that ended long ago.
WITH forgotten AS (
    UPDATE authorization_request SET held_ct = NULL, held_kek_ref = NULL WHERE status = 'held' AND held_ct IS NOT NULL AND expires_at < now()
)
DELETE FROM authorization_request WHERE expires_at < now() - interval '30 days';

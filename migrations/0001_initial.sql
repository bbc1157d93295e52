-- The first schema. Every key begins with the environment, the isolation unit of a deployment.
-- Secrets are sealed blobs ("ct") beside the name of the key version that wraps them ("kek_ref"); nothing secret is stored in the clear.

CREATE TABLE deployment (
    only_row      boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    id            uuid        NOT NULL DEFAULT gen_random_uuid(),  -- part of every blob's associated data
    restore_epoch bigint      NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE environment (
    id         text        PRIMARY KEY CHECK (id ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_key (
    environment_id text        NOT NULL REFERENCES environment,
    id             uuid        NOT NULL,
    name           text        NOT NULL,
    digest         bytea       NOT NULL UNIQUE,  -- keyed SHA-256; the key is in the keyring, not here
    last_four      text        NOT NULL,
    scopes         text[]      NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz NOT NULL,
    last_used_at   timestamptz,
    revoked_at     timestamptz,
    PRIMARY KEY (environment_id, id)
);

CREATE TABLE custom_provider (  -- a descriptor made at run time, shared by both roots of its slug
    environment_id text        NOT NULL REFERENCES environment,
    slug           text        NOT NULL,
    definition     jsonb       NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment_id, slug)
);

CREATE TABLE integration (
    environment_id        text        NOT NULL REFERENCES environment,
    id                    uuid        NOT NULL,
    slug                  text        NOT NULL,
    ownership             text        NOT NULL CHECK (ownership IN ('user', 'organization')),
    redirect_key          text        NOT NULL UNIQUE,  -- "dik_…": the part of the redirect URI that names this integration
    description           text,
    enabled               boolean     NOT NULL DEFAULT false,
    state                 text        NOT NULL CHECK (state IN ('valid', 'invalid', 'requested')),
    state_reason          text,                         -- the provider's error code that made it invalid
    scopes                text[],                       -- NULL: the provider's default
    auth_methods          text[]      NOT NULL,
    config                jsonb       NOT NULL DEFAULT '{}',
    credentials_type      text        CHECK (credentials_type IN ('custom', 'organization')),
    client_id             text,
    client_secret_ct      bytea,
    client_secret_kek_ref text,
    client_secret_last4   text,
    revision              bigint      NOT NULL DEFAULT 1,  -- grows with every change; part of the client secret's associated data
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    retired_at            timestamptz,                  -- deleted by its operator; kept for its tombstones and pending revocations
    PRIMARY KEY (environment_id, id)
);
CREATE UNIQUE INDEX integration_root ON integration (environment_id, slug, ownership) WHERE retired_at IS NULL;

CREATE TABLE connection (
    environment_id         text        NOT NULL,
    id                     uuid        NOT NULL,
    integration_id         uuid        NOT NULL,
    user_id                text        CHECK (length(user_id) BETWEEN 1 AND 255),  -- NULL: owned by the organization
    organization_id        text        CHECK (length(organization_id) BETWEEN 1 AND 255),
    user_key               text        NOT NULL GENERATED ALWAYS AS (coalesce(user_id, '')) STORED,  -- so that an index can find a missing one
    organization_key       text        NOT NULL GENERATED ALWAYS AS (coalesce(organization_id, '')) STORED,
    established_by_user_id text,
    connection_role        text        NOT NULL DEFAULT 'compatibility' CHECK (connection_role IN ('compatibility', 'standard')),
    auth_method            text        NOT NULL DEFAULT 'oauth' CHECK (auth_method IN ('oauth', 'api_key', 'client_credentials')),
    state                  text        NOT NULL CHECK (state IN ('connected', 'needs_reauthorization', 'disconnected')),
    state_reason           text,
    state_cause            text,                                 -- why, in plain words for an operator
    state_since            timestamptz NOT NULL DEFAULT now(),
    in_doubt               boolean     NOT NULL DEFAULT false,
    version                bigint      NOT NULL DEFAULT 0,       -- number of the current secret version; only grows
    fence                  bigint      NOT NULL DEFAULT 0,       -- moves on every lease and on every event that must defeat a late writer
    epoch                  bigint      NOT NULL DEFAULT 0,       -- moves on disconnect, reauthorization, force
    lease_holder           text,
    lease_until            timestamptz NOT NULL DEFAULT '-infinity',
    retry_at               timestamptz NOT NULL DEFAULT '-infinity',
    refreshable            boolean     NOT NULL DEFAULT false,   -- a refresh token is held
    at_exp                 timestamptz,                          -- end of the access token, skew taken off; NULL: the provider states none
    at_life_s              integer,
    serve_until            timestamptz,                          -- at_exp less the hard margin: nothing is handed out after it
    refresh_after          timestamptz,                          -- at_exp less the soft margin: refreshed in the background after it
    rt_idle_exp            timestamptz,
    rt_abs_exp             timestamptz,
    scopes                 text[]      NOT NULL DEFAULT '{}',
    account_id             text,
    account_name           text,
    account_tenant_id      text,
    instance_url           text,                                 -- a copy for operators; callers get the one in the sealed token set
    config                 jsonb       NOT NULL DEFAULT '{}',
    account_display_name   text,
    account_identifier     text,
    last_refreshed_at      timestamptz,
    last_refresh_error     text,
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment_id, id),
    FOREIGN KEY (environment_id, integration_id) REFERENCES integration,
    CHECK (user_id IS NOT NULL OR organization_id IS NOT NULL),
    CHECK ((state = 'connected') = (state_reason IS NULL))
);
CREATE UNIQUE INDEX connection_compatibility ON connection (environment_id, integration_id, user_key, organization_key)
    WHERE state <> 'disconnected' AND connection_role = 'compatibility';
CREATE INDEX connection_owner ON connection (environment_id, user_key, organization_key, integration_id);
CREATE INDEX connection_idle ON connection (rt_idle_exp) WHERE state = 'connected' AND rt_idle_exp IS NOT NULL;
CREATE INDEX connection_withheld ON connection (state_since) WHERE state = 'needs_reauthorization';
CREATE INDEX connection_organization ON connection (environment_id, organization_key, id);

CREATE TABLE secret_version (
    environment_id text        NOT NULL,
    connection_id  uuid        NOT NULL,
    version_no     bigint      NOT NULL,
    fence          bigint      NOT NULL,
    state          text        NOT NULL CHECK (state IN ('current', 'previous', 'orphan', 'revoking')),
    received_at    timestamptz NOT NULL,
    ct             bytea       NOT NULL,
    kek_ref        text        NOT NULL,
    expires_at     timestamptz,                                  -- when a version that is not current is erased
    PRIMARY KEY (environment_id, connection_id, version_no, fence),
    FOREIGN KEY (environment_id, connection_id) REFERENCES connection ON DELETE CASCADE
);
CREATE UNIQUE INDEX secret_version_current ON secret_version (environment_id, connection_id) WHERE state = 'current';
CREATE INDEX secret_version_expiring ON secret_version (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX secret_version_kek_ref ON secret_version (kek_ref, environment_id, connection_id, version_no, fence);

CREATE TABLE refresh_intent (
    environment_id text        NOT NULL,
    id             uuid        NOT NULL,
    connection_id  uuid        NOT NULL,
    parent_id      uuid,                                         -- the intent this one replays
    fence          bigint      NOT NULL,
    from_version   bigint      NOT NULL,
    epoch          bigint      NOT NULL,
    rt_fp          bytea       NOT NULL,                         -- keyed fingerprint of the refresh token that was sent
    holder         text        NOT NULL,
    started_at     timestamptz NOT NULL,
    deadline_at    timestamptz NOT NULL,
    outcome        text        NOT NULL DEFAULT 'pending' CHECK (outcome IN ('pending', 'not_sent', 'committed', 'orphaned', 'dead',
                                  'config_fault', 'busy', 'throttled', 'refused_5xx', 'in_doubt', 'unknown')),
    error          text,
    finished_at    timestamptz,
    PRIMARY KEY (environment_id, id),
    UNIQUE (environment_id, connection_id, fence),
    FOREIGN KEY (environment_id, connection_id) REFERENCES connection ON DELETE CASCADE
);
CREATE INDEX refresh_intent_pending ON refresh_intent (deadline_at) WHERE outcome = 'pending';
CREATE INDEX refresh_intent_finished ON refresh_intent (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE receipt (  -- the provider's answer as it came, sealed before it is parsed
    environment_id text        NOT NULL,
    intent_id      uuid        NOT NULL,
    complete       boolean     NOT NULL,
    http_status    integer     NOT NULL,
    received_at    timestamptz NOT NULL,
    ct             bytea       NOT NULL,
    kek_ref        text        NOT NULL,
    parsed_at      timestamptz,
    PRIMARY KEY (environment_id, intent_id),
    FOREIGN KEY (environment_id, intent_id) REFERENCES refresh_intent ON DELETE CASCADE
);
CREATE INDEX receipt_unparsed ON receipt (received_at) WHERE parsed_at IS NULL;
CREATE INDEX receipt_parsed ON receipt (parsed_at) WHERE parsed_at IS NOT NULL;

CREATE TABLE dead_rt (  -- refresh tokens a provider has refused for good; never sent again
    environment_id text        NOT NULL,
    rt_fp          bytea       NOT NULL,
    intent_id      uuid        NOT NULL,
    seen_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment_id, rt_fp)
);

CREATE TABLE authorization_request (  -- one browser trip
    environment_id         text        NOT NULL,
    id                     uuid        NOT NULL,
    integration_id         uuid        NOT NULL,
    ticket_digest          bytea       NOT NULL UNIQUE,          -- of the opaque part of the connect link
    public_state           text        NOT NULL,                 -- "st_…", told to the caller and given back on return_to
    state_digest           bytea       UNIQUE,                   -- of the state sent to the provider; NULL before and after its one use
    browser_digest         bytea,                                -- of the cookie secret of the browser that went to the provider
    caller_type            text        NOT NULL,
    caller_id              text        NOT NULL,
    owner                  text        NOT NULL CHECK (owner IN ('user', 'organization')),
    user_id                text        NOT NULL,                 -- the person in the browser, owner or acting member
    organization_id        text,
    intent                 text        NOT NULL CHECK (intent IN ('compatibility', 'add', 'reauthorize')),
    target_id              uuid,                                 -- the connection aimed at, where there was one
    target_epoch           bigint,
    account_display_name   text,
    code_challenge         text,
    return_to              text,
    config                 jsonb       NOT NULL,                 -- connection-scope fields
    endpoints              jsonb       NOT NULL,                 -- the authorization server, fixed when the flow began
    redirect_uri           text        NOT NULL,
    client_id              text        NOT NULL,
    scopes                 text[]      NOT NULL,
    verifier_ct            bytea,
    verifier_kek_ref       text,
    status                 text        NOT NULL DEFAULT 'started' CHECK (status IN ('started', 'redirected', 'returned', 'finishing',
                                          'saved', 'denied', 'failed', 'burnt', 'held', 'expired')),
    connect_code_digest    bytea       UNIQUE,
    code_ct                bytea,                                -- the provider's code, sealed, waiting for finish
    code_kek_ref           text,
    callback               jsonb,                                -- further callback parameters the descriptor asks for
    held_ct                bytea,                                -- tokens of another account than the connection's, waiting for a decision
    held_kek_ref           text,
    held_account_id        text,
    error_code             text,
    created_at             timestamptz NOT NULL DEFAULT now(),
    expires_at             timestamptz NOT NULL,
    PRIMARY KEY (environment_id, id),
    FOREIGN KEY (environment_id, integration_id) REFERENCES integration ON DELETE CASCADE
);
CREATE INDEX authorization_request_expiring ON authorization_request (expires_at);

CREATE TABLE audit_record (
    seq             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    environment_id  text        NOT NULL,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    action          text        NOT NULL,
    outcome         text        NOT NULL CHECK (outcome IN ('ok', 'failed', 'denied')),
    reason          text,
    actor_type      text        NOT NULL CHECK (actor_type IN ('api_key', 'application', 'user', 'operator', 'system')),
    actor_id        text,
    user_id         text,
    organization_id text,
    connection_id   uuid,
    version_no      bigint,
    provider        text,
    purpose         text,
    request_id      text,
    ip              text,
    user_agent      text
);
CREATE INDEX audit_record_connection ON audit_record (connection_id, seq) WHERE connection_id IS NOT NULL;
CREATE INDEX audit_record_environment ON audit_record (environment_id, seq);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit records are never changed' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER audit_record_append_only BEFORE UPDATE OR DELETE ON audit_record FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_record_never_emptied BEFORE TRUNCATE ON audit_record FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE event (  -- the outbox: written with the change it tells of
    environment_id  text        NOT NULL,
    id              uuid        NOT NULL,
    name            text        NOT NULL,
    organization_id text,
    data            jsonb       NOT NULL,
    context         jsonb       NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment_id, id)
);

CREATE TABLE operation (
    environment_id text        NOT NULL,
    id             uuid        NOT NULL,
    kind           text        NOT NULL CHECK (kind IN ('reauthorize', 'revoke', 'offboard', 'rewrap')),
    status         text        NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'completed', 'failed')),
    filter         jsonb       NOT NULL,
    note           text,
    actor_type     text        NOT NULL,
    actor_id       text,
    position       uuid,                                         -- the last connection that was dealt with; where a resumed run goes on
    matched        integer     NOT NULL DEFAULT 0,
    done           integer     NOT NULL DEFAULT 0,
    skipped        integer     NOT NULL DEFAULT 0,
    failed         integer     NOT NULL DEFAULT 0,
    created_at     timestamptz NOT NULL DEFAULT now(),
    finished_at    timestamptz,
    PRIMARY KEY (environment_id, id)
);
CREATE INDEX operation_running ON operation (created_at) WHERE status = 'running';

CREATE TABLE revocation_job (  -- ends a grant at the provider, retried; the outcome stays readable
    environment_id  text        NOT NULL,
    id              uuid        NOT NULL,
    integration_id  uuid        NOT NULL,
    connection_id   uuid,                                        -- its 'revoking' secret versions are the tokens, unless ct holds them
    operation_id    uuid,
    ct              bytea,
    kek_ref         text,
    config          jsonb       NOT NULL DEFAULT '{}',           -- connection-scope fields of the tokens in ct
    status          text        NOT NULL CHECK (status IN ('pending', 'succeeded', 'failed', 'unsupported')),
    attempts        integer     NOT NULL DEFAULT 0,
    last_attempt_at timestamptz,
    next_attempt_at timestamptz,
    last_error      text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment_id, id)
);
CREATE INDEX revocation_job_due ON revocation_job (attempts, next_attempt_at) WHERE status = 'pending';
CREATE INDEX revocation_job_connection ON revocation_job (environment_id, connection_id, created_at);
CREATE INDEX revocation_job_operation ON revocation_job (environment_id, operation_id) WHERE operation_id IS NOT NULL;

CREATE TABLE idempotency_key (
    environment_id text        NOT NULL,
    caller_id      text        NOT NULL,
    route          text        NOT NULL,
    key_digest     bytea       NOT NULL,
    body_digest    bytea       NOT NULL,
    status         integer,                                      -- NULL: the first request is still being served
    body           bytea,                                        -- never an answer that holds a token
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment_id, caller_id, route, key_digest)
);
CREATE INDEX idempotency_key_created ON idempotency_key (created_at);

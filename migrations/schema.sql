-- What the migrations amount to; written by `make schema`, compared with them by tests/unit/test_schema.py.

CREATE FUNCTION public.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'audit records are never changed' USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TABLE public.api_key (
    environment_id text NOT NULL,
    id uuid NOT NULL,
    name text NOT NULL,
    digest bytea NOT NULL,
    last_four text NOT NULL,
    scopes text[] NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    last_used_at timestamp with time zone,
    revoked_at timestamp with time zone
);

CREATE TABLE public.audit_record (
    seq bigint NOT NULL,
    environment_id text NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    action text NOT NULL,
    outcome text NOT NULL,
    reason text,
    actor_type text NOT NULL,
    actor_id text,
    user_id text,
    organization_id text,
    connection_id uuid,
    version_no bigint,
    provider text,
    purpose text,
    request_id text,
    ip text,
    user_agent text,
    CONSTRAINT audit_record_actor_type_check CHECK ((actor_type = ANY (ARRAY['api_key'::text, 'application'::text, 'user'::text, 'operator'::text, 'system'::text]))),
    CONSTRAINT audit_record_outcome_check CHECK ((outcome = ANY (ARRAY['ok'::text, 'failed'::text, 'denied'::text])))
);

ALTER TABLE public.audit_record ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.audit_record_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.authorization_request (
    environment_id text NOT NULL,
    id uuid NOT NULL,
    integration_id uuid NOT NULL,
    ticket_digest bytea NOT NULL,
    public_state text NOT NULL,
    state_digest bytea,
    browser_digest bytea,
    caller_type text NOT NULL,
    caller_id text NOT NULL,
    owner text NOT NULL,
    user_id text NOT NULL,
    organization_id text,
    intent text NOT NULL,
    target_id uuid,
    target_epoch bigint,
    account_display_name text,
    code_challenge text,
    return_to text,
    config jsonb NOT NULL,
    endpoints jsonb NOT NULL,
    redirect_uri text NOT NULL,
    client_id text NOT NULL,
    scopes text[] NOT NULL,
    verifier_ct bytea,
    verifier_kek_ref text,
    status text DEFAULT 'started'::text NOT NULL,
    connect_code_digest bytea,
    code_ct bytea,
    code_kek_ref text,
    callback jsonb,
    held_ct bytea,
    held_kek_ref text,
    held_account_id text,
    error_code text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT authorization_request_intent_check CHECK ((intent = ANY (ARRAY['compatibility'::text, 'add'::text, 'reauthorize'::text]))),
    CONSTRAINT authorization_request_owner_check CHECK ((owner = ANY (ARRAY['user'::text, 'organization'::text]))),
    CONSTRAINT authorization_request_status_check CHECK ((status = ANY (ARRAY['started'::text, 'redirected'::text, 'returned'::text, 'finishing'::text, 'saved'::text, 'denied'::text, 'failed'::text, 'burnt'::text, 'held'::text, 'expired'::text])))
);

CREATE TABLE public.connection (
    environment_id text NOT NULL,
    id uuid NOT NULL,
    integration_id uuid NOT NULL,
    user_id text,
    organization_id text,
    user_key text GENERATED ALWAYS AS (COALESCE(user_id, ''::text)) STORED NOT NULL,
    organization_key text GENERATED ALWAYS AS (COALESCE(organization_id, ''::text)) STORED NOT NULL,
    established_by_user_id text,
    connection_role text DEFAULT 'compatibility'::text NOT NULL,
    auth_method text DEFAULT 'oauth'::text NOT NULL,
    state text NOT NULL,
    state_reason text,
    state_cause text,
    state_since timestamp with time zone DEFAULT now() NOT NULL,
    in_doubt boolean DEFAULT false NOT NULL,
    version bigint DEFAULT 0 NOT NULL,
    fence bigint DEFAULT 0 NOT NULL,
    epoch bigint DEFAULT 0 NOT NULL,
    lease_holder text,
    lease_until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    retry_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    refreshable boolean DEFAULT false NOT NULL,
    at_exp timestamp with time zone,
    at_life_s integer,
    serve_until timestamp with time zone,
    refresh_after timestamp with time zone,
    rt_idle_exp timestamp with time zone,
    rt_abs_exp timestamp with time zone,
    scopes text[] DEFAULT '{}'::text[] NOT NULL,
    account_id text,
    account_name text,
    account_tenant_id text,
    instance_url text,
    config jsonb DEFAULT '{}'::jsonb NOT NULL,
    account_display_name text,
    account_identifier text,
    last_refreshed_at timestamp with time zone,
    last_refresh_error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    restored boolean DEFAULT false NOT NULL,
    noticed_days smallint,
    CONSTRAINT connection_auth_method_check CHECK ((auth_method = ANY (ARRAY['oauth'::text, 'api_key'::text, 'client_credentials'::text]))),
    CONSTRAINT connection_cause CHECK (((state <> 'needs_reauthorization'::text) OR (state_cause IS NOT NULL))),
    CONSTRAINT connection_check CHECK (((user_id IS NOT NULL) OR (organization_id IS NOT NULL))),
    CONSTRAINT connection_check1 CHECK (((state = 'connected'::text) = (state_reason IS NULL))),
    CONSTRAINT connection_connection_role_check CHECK ((connection_role = ANY (ARRAY['compatibility'::text, 'standard'::text]))),
    CONSTRAINT connection_organization_id_check CHECK (((length(organization_id) >= 1) AND (length(organization_id) <= 255))),
    CONSTRAINT connection_state_check CHECK ((state = ANY (ARRAY['connected'::text, 'needs_reauthorization'::text, 'disconnected'::text]))),
    CONSTRAINT connection_user_id_check CHECK (((length(user_id) >= 1) AND (length(user_id) <= 255)))
);

CREATE TABLE public.custom_provider (
    environment_id text NOT NULL,
    slug text NOT NULL,
    definition jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.dead_rt (
    environment_id text NOT NULL,
    rt_fp bytea NOT NULL,
    intent_id uuid NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.deployment (
    only_row boolean DEFAULT true NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    restore_epoch bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    system_identifier bigint,
    timeline_id integer,
    sealed_since timestamp with time zone,
    sealed_reason text,
    CONSTRAINT deployment_check CHECK (((sealed_since IS NULL) = (sealed_reason IS NULL))),
    CONSTRAINT deployment_only_row_check CHECK (only_row)
);

CREATE TABLE public.environment (
    id text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT environment_id_check CHECK ((id ~ '^[a-z0-9][a-z0-9-]{0,62}$'::text))
);

CREATE TABLE public.event (
    environment_id text NOT NULL,
    id uuid NOT NULL,
    name text NOT NULL,
    organization_id text,
    data jsonb NOT NULL,
    context jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.idempotency_key (
    environment_id text NOT NULL,
    caller_id text NOT NULL,
    route text NOT NULL,
    key_digest bytea NOT NULL,
    body_digest bytea NOT NULL,
    status integer,
    body bytea,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.integration (
    environment_id text NOT NULL,
    id uuid NOT NULL,
    slug text NOT NULL,
    ownership text NOT NULL,
    redirect_key text NOT NULL,
    description text,
    enabled boolean DEFAULT false NOT NULL,
    state text NOT NULL,
    state_reason text,
    scopes text[],
    auth_methods text[] NOT NULL,
    config jsonb DEFAULT '{}'::jsonb NOT NULL,
    credentials_type text,
    client_id text,
    client_secret_ct bytea,
    client_secret_kek_ref text,
    client_secret_last4 text,
    revision bigint DEFAULT 1 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    retired_at timestamp with time zone,
    probe_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    invalid_since timestamp with time zone,
    suspect_since timestamp with time zone,
    CONSTRAINT integration_credentials_type_check CHECK ((credentials_type = ANY (ARRAY['custom'::text, 'organization'::text]))),
    CONSTRAINT integration_ownership_check CHECK ((ownership = ANY (ARRAY['user'::text, 'organization'::text]))),
    CONSTRAINT integration_state_check CHECK ((state = ANY (ARRAY['valid'::text, 'invalid'::text, 'requested'::text])))
);

CREATE TABLE public.operation (
    environment_id text NOT NULL,
    id uuid NOT NULL,
    kind text NOT NULL,
    status text DEFAULT 'running'::text NOT NULL,
    filter jsonb NOT NULL,
    note text,
    actor_type text NOT NULL,
    actor_id text,
    "position" uuid,
    matched integer DEFAULT 0 NOT NULL,
    done integer DEFAULT 0 NOT NULL,
    skipped integer DEFAULT 0 NOT NULL,
    failed integer DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    finished_at timestamp with time zone,
    CONSTRAINT operation_kind_check CHECK ((kind = ANY (ARRAY['reauthorize'::text, 'revoke'::text, 'offboard'::text, 'rewrap'::text]))),
    CONSTRAINT operation_status_check CHECK ((status = ANY (ARRAY['running'::text, 'completed'::text, 'failed'::text])))
);

CREATE TABLE public.receipt (
    environment_id text NOT NULL,
    intent_id uuid NOT NULL,
    complete boolean NOT NULL,
    http_status integer NOT NULL,
    received_at timestamp with time zone NOT NULL,
    ct bytea NOT NULL,
    kek_ref text NOT NULL,
    parsed_at timestamp with time zone
);

CREATE TABLE public.refresh_intent (
    environment_id text NOT NULL,
    id uuid NOT NULL,
    connection_id uuid NOT NULL,
    parent_id uuid,
    fence bigint NOT NULL,
    from_version bigint NOT NULL,
    epoch bigint NOT NULL,
    rt_fp bytea NOT NULL,
    holder text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    deadline_at timestamp with time zone NOT NULL,
    outcome text DEFAULT 'pending'::text NOT NULL,
    error text,
    finished_at timestamp with time zone,
    integration_id uuid,
    integration_revision bigint DEFAULT 0 NOT NULL,
    CONSTRAINT refresh_intent_outcome_check CHECK ((outcome = ANY (ARRAY['pending'::text, 'not_sent'::text, 'committed'::text, 'orphaned'::text, 'dead'::text, 'config_fault'::text, 'busy'::text, 'throttled'::text, 'refused_5xx'::text, 'in_doubt'::text, 'unknown'::text])))
);

CREATE TABLE public.revocation_job (
    environment_id text NOT NULL,
    id uuid NOT NULL,
    integration_id uuid NOT NULL,
    connection_id uuid,
    operation_id uuid,
    ct bytea,
    kek_ref text,
    config jsonb DEFAULT '{}'::jsonb NOT NULL,
    status text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    last_attempt_at timestamp with time zone,
    next_attempt_at timestamp with time zone,
    last_error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT revocation_job_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'succeeded'::text, 'failed'::text, 'unsupported'::text])))
);

CREATE TABLE public.secret_version (
    environment_id text NOT NULL,
    connection_id uuid NOT NULL,
    version_no bigint NOT NULL,
    fence bigint NOT NULL,
    state text NOT NULL,
    received_at timestamp with time zone NOT NULL,
    ct bytea NOT NULL,
    kek_ref text NOT NULL,
    expires_at timestamp with time zone,
    CONSTRAINT secret_version_state_check CHECK ((state = ANY (ARRAY['current'::text, 'previous'::text, 'orphan'::text, 'revoking'::text])))
);

CREATE TABLE public.verdict (
    environment_id text NOT NULL,
    connection_id uuid NOT NULL,
    integration_id uuid NOT NULL,
    intent_id uuid NOT NULL,
    version bigint NOT NULL,
    epoch bigint NOT NULL,
    rt_fp bytea NOT NULL,
    reason text NOT NULL,
    cause text NOT NULL,
    error text,
    in_effect boolean NOT NULL,
    given_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY public.api_key
    ADD CONSTRAINT api_key_digest_key UNIQUE (digest);

ALTER TABLE ONLY public.api_key
    ADD CONSTRAINT api_key_pkey PRIMARY KEY (environment_id, id);

ALTER TABLE ONLY public.audit_record
    ADD CONSTRAINT audit_record_pkey PRIMARY KEY (seq);

ALTER TABLE ONLY public.authorization_request
    ADD CONSTRAINT authorization_request_connect_code_digest_key UNIQUE (connect_code_digest);

ALTER TABLE ONLY public.authorization_request
    ADD CONSTRAINT authorization_request_pkey PRIMARY KEY (environment_id, id);

ALTER TABLE ONLY public.authorization_request
    ADD CONSTRAINT authorization_request_state_digest_key UNIQUE (state_digest);

ALTER TABLE ONLY public.authorization_request
    ADD CONSTRAINT authorization_request_ticket_digest_key UNIQUE (ticket_digest);

ALTER TABLE ONLY public.connection
    ADD CONSTRAINT connection_pkey PRIMARY KEY (environment_id, id);

ALTER TABLE ONLY public.custom_provider
    ADD CONSTRAINT custom_provider_pkey PRIMARY KEY (environment_id, slug);

ALTER TABLE ONLY public.dead_rt
    ADD CONSTRAINT dead_rt_pkey PRIMARY KEY (environment_id, rt_fp);

ALTER TABLE ONLY public.deployment
    ADD CONSTRAINT deployment_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY public.environment
    ADD CONSTRAINT environment_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.event
    ADD CONSTRAINT event_pkey PRIMARY KEY (environment_id, id);

ALTER TABLE ONLY public.idempotency_key
    ADD CONSTRAINT idempotency_key_pkey PRIMARY KEY (environment_id, caller_id, route, key_digest);

ALTER TABLE ONLY public.integration
    ADD CONSTRAINT integration_pkey PRIMARY KEY (environment_id, id);

ALTER TABLE ONLY public.integration
    ADD CONSTRAINT integration_redirect_key_key UNIQUE (redirect_key);

ALTER TABLE ONLY public.operation
    ADD CONSTRAINT operation_pkey PRIMARY KEY (environment_id, id);

ALTER TABLE ONLY public.receipt
    ADD CONSTRAINT receipt_pkey PRIMARY KEY (environment_id, intent_id);

ALTER TABLE ONLY public.refresh_intent
    ADD CONSTRAINT refresh_intent_environment_id_connection_id_fence_key UNIQUE (environment_id, connection_id, fence);

ALTER TABLE ONLY public.refresh_intent
    ADD CONSTRAINT refresh_intent_pkey PRIMARY KEY (environment_id, id);

ALTER TABLE ONLY public.revocation_job
    ADD CONSTRAINT revocation_job_pkey PRIMARY KEY (environment_id, id);

ALTER TABLE ONLY public.secret_version
    ADD CONSTRAINT secret_version_pkey PRIMARY KEY (environment_id, connection_id, version_no, fence);

ALTER TABLE ONLY public.verdict
    ADD CONSTRAINT verdict_pkey PRIMARY KEY (environment_id, connection_id);

CREATE INDEX audit_record_connection ON public.audit_record USING btree (connection_id, seq) WHERE (connection_id IS NOT NULL);

CREATE INDEX audit_record_environment ON public.audit_record USING btree (environment_id, seq);

CREATE INDEX authorization_request_expiring ON public.authorization_request USING btree (expires_at);

CREATE INDEX connection_absolute_end ON public.connection USING btree (rt_abs_exp) WHERE ((state = 'connected'::text) AND (rt_abs_exp IS NOT NULL));

CREATE UNIQUE INDEX connection_compatibility ON public.connection USING btree (environment_id, integration_id, user_key, organization_key) WHERE ((state <> 'disconnected'::text) AND (connection_role = 'compatibility'::text));

CREATE INDEX connection_idle ON public.connection USING btree (rt_idle_exp) WHERE ((state = 'connected'::text) AND (rt_idle_exp IS NOT NULL));

CREATE INDEX connection_in_doubt ON public.connection USING btree (retry_at) WHERE ((state = 'connected'::text) AND in_doubt);

CREATE INDEX connection_organization ON public.connection USING btree (environment_id, organization_key, id);

CREATE INDEX connection_owner ON public.connection USING btree (environment_id, user_key, organization_key, integration_id);

CREATE INDEX connection_restored ON public.connection USING btree (environment_id, integration_id) WHERE restored;

CREATE INDEX connection_withheld ON public.connection USING btree (state_since) WHERE (state = 'needs_reauthorization'::text);

CREATE INDEX dead_rt_seen ON public.dead_rt USING btree (seen_at);

CREATE INDEX event_created ON public.event USING btree (created_at);

CREATE INDEX idempotency_key_created ON public.idempotency_key USING btree (created_at);

CREATE UNIQUE INDEX integration_root ON public.integration USING btree (environment_id, slug, ownership) WHERE (retired_at IS NULL);

CREATE INDEX operation_running ON public.operation USING btree (created_at) WHERE (status = 'running'::text);

CREATE INDEX receipt_parsed ON public.receipt USING btree (parsed_at) WHERE (parsed_at IS NOT NULL);

CREATE INDEX receipt_unparsed ON public.receipt USING btree (received_at) WHERE (parsed_at IS NULL);

CREATE INDEX refresh_intent_finished ON public.refresh_intent USING btree (finished_at) WHERE (finished_at IS NOT NULL);

CREATE INDEX refresh_intent_pending ON public.refresh_intent USING btree (deadline_at) WHERE (outcome = 'pending'::text);

CREATE INDEX refresh_intent_refused ON public.refresh_intent USING btree (environment_id, integration_id, finished_at) WHERE (outcome = 'config_fault'::text);

CREATE INDEX refresh_intent_tally ON public.refresh_intent USING btree (environment_id, integration_id, finished_at) WHERE (outcome = ANY (ARRAY['committed'::text, 'orphaned'::text, 'dead'::text]));

CREATE INDEX revocation_job_connection ON public.revocation_job USING btree (environment_id, connection_id, created_at);

CREATE INDEX revocation_job_due ON public.revocation_job USING btree (attempts, next_attempt_at) WHERE (status = 'pending'::text);

CREATE INDEX revocation_job_operation ON public.revocation_job USING btree (environment_id, operation_id) WHERE (operation_id IS NOT NULL);

CREATE INDEX revocation_job_settled ON public.revocation_job USING btree (created_at) WHERE (status <> 'pending'::text);

CREATE UNIQUE INDEX secret_version_current ON public.secret_version USING btree (environment_id, connection_id) WHERE (state = 'current'::text);

CREATE INDEX secret_version_expiring ON public.secret_version USING btree (expires_at) WHERE (expires_at IS NOT NULL);

CREATE INDEX secret_version_kek_ref ON public.secret_version USING btree (kek_ref, environment_id, connection_id, version_no, fence);

CREATE INDEX secret_version_orphan ON public.secret_version USING btree (environment_id, connection_id) WHERE (state = 'orphan'::text);

CREATE INDEX verdict_given ON public.verdict USING btree (given_at);

CREATE INDEX verdict_of_integration ON public.verdict USING btree (environment_id, integration_id, given_at);

CREATE TRIGGER audit_record_append_only BEFORE DELETE OR UPDATE ON public.audit_record FOR EACH ROW EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER audit_record_never_emptied BEFORE TRUNCATE ON public.audit_record FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

ALTER TABLE ONLY public.api_key
    ADD CONSTRAINT api_key_environment_id_fkey FOREIGN KEY (environment_id) REFERENCES public.environment(id);

ALTER TABLE ONLY public.authorization_request
    ADD CONSTRAINT authorization_request_environment_id_integration_id_fkey FOREIGN KEY (environment_id, integration_id) REFERENCES public.integration(environment_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY public.connection
    ADD CONSTRAINT connection_environment_id_integration_id_fkey FOREIGN KEY (environment_id, integration_id) REFERENCES public.integration(environment_id, id);

ALTER TABLE ONLY public.custom_provider
    ADD CONSTRAINT custom_provider_environment_id_fkey FOREIGN KEY (environment_id) REFERENCES public.environment(id);

ALTER TABLE ONLY public.integration
    ADD CONSTRAINT integration_environment_id_fkey FOREIGN KEY (environment_id) REFERENCES public.environment(id);

ALTER TABLE ONLY public.receipt
    ADD CONSTRAINT receipt_environment_id_intent_id_fkey FOREIGN KEY (environment_id, intent_id) REFERENCES public.refresh_intent(environment_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY public.refresh_intent
    ADD CONSTRAINT refresh_intent_environment_id_connection_id_fkey FOREIGN KEY (environment_id, connection_id) REFERENCES public.connection(environment_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY public.secret_version
    ADD CONSTRAINT secret_version_environment_id_connection_id_fkey FOREIGN KEY (environment_id, connection_id) REFERENCES public.connection(environment_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY public.verdict
    ADD CONSTRAINT verdict_environment_id_connection_id_fkey FOREIGN KEY (environment_id, connection_id) REFERENCES public.connection(environment_id, id) ON DELETE CASCADE;

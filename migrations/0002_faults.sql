-- What the refresh engine needs to live through faults of providers, of operators and of the database itself.

-- A restore, or a failover that lost commits, brings back refresh tokens that may be spent: the engine is sealed until an operator has
-- looked, and then knows which connections hold tokens of before (reliability.md 4.3).
ALTER TABLE deployment
    ADD COLUMN system_identifier bigint,        -- of the cluster this row was last confirmed on; NULL: not looked at yet
    ADD COLUMN timeline_id       integer,
    ADD COLUMN sealed_since      timestamptz,   -- no refresh anywhere until an operator confirms
    ADD COLUMN sealed_reason     text CHECK ((sealed_since IS NULL) = (sealed_reason IS NULL));

ALTER TABLE integration
    ADD COLUMN probe_at      timestamptz NOT NULL DEFAULT '-infinity',  -- while invalid: when one refresh may try the client credentials again
    ADD COLUMN invalid_since timestamptz,       -- since when its state is that, if it is
    ADD COLUMN suspect_since timestamptz;       -- its provider refuses too many grants at once: verdicts wait for an operator

ALTER TABLE connection
    ADD COLUMN restored      boolean NOT NULL DEFAULT false,  -- its refresh token came out of a backup and is sent on an operator's word only
    ADD COLUMN noticed_days  smallint,          -- the last notice of the grant's absolute end told of so many days
    ADD CONSTRAINT connection_cause CHECK (state <> 'needs_reauthorization' OR state_cause IS NOT NULL) NOT VALID;
UPDATE connection SET state_cause = state_reason WHERE state = 'needs_reauthorization' AND state_cause IS NULL;
ALTER TABLE connection VALIDATE CONSTRAINT connection_cause;
CREATE INDEX connection_absolute_end ON connection (rt_abs_exp) WHERE state = 'connected' AND rt_abs_exp IS NOT NULL;
CREATE INDEX connection_in_doubt ON connection (retry_at) WHERE state = 'connected' AND in_doubt;
CREATE INDEX connection_restored ON connection (environment_id, integration_id) WHERE restored;

ALTER TABLE refresh_intent
    ADD COLUMN integration_id       uuid,       -- NULL only in rows that a replica of the release before wrote
    ADD COLUMN integration_revision bigint NOT NULL DEFAULT 0;  -- of the integration when the request was made: its address and credentials
UPDATE refresh_intent r SET integration_id = c.integration_id  -- only what the brake counts: the tables are locked meanwhile
  FROM connection c WHERE (c.environment_id, c.id) = (r.environment_id, r.connection_id) AND r.finished_at > now() - interval '1 day';
CREATE INDEX refresh_intent_tally ON refresh_intent (environment_id, integration_id, finished_at)
    WHERE outcome IN ('committed', 'orphaned', 'dead');

CREATE INDEX refresh_intent_refused ON refresh_intent (environment_id, integration_id, finished_at) WHERE outcome = 'config_fault';

CREATE TABLE verdict (  -- dead verdicts on probation: none is told of before the brake's window has passed
    environment_id text        NOT NULL,
    connection_id  uuid        NOT NULL,
    integration_id uuid        NOT NULL,
    intent_id      uuid        NOT NULL,
    version        bigint      NOT NULL,
    epoch          bigint      NOT NULL,
    rt_fp          bytea       NOT NULL,
    reason         text        NOT NULL,
    cause          text        NOT NULL,
    error          text,
    in_effect      boolean     NOT NULL,        -- false: withdrawn, or given while its provider was suspect
    given_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment_id, connection_id),
    FOREIGN KEY (environment_id, connection_id) REFERENCES connection ON DELETE CASCADE
);
CREATE INDEX verdict_of_integration ON verdict (environment_id, integration_id, given_at);
CREATE INDEX verdict_given ON verdict (given_at);

-- What the worker asks for every few seconds, found without reading whole tables.
CREATE INDEX secret_version_orphan ON secret_version (environment_id, connection_id) WHERE state = 'orphan';
CREATE INDEX event_created ON event (created_at);
CREATE INDEX revocation_job_settled ON revocation_job (created_at) WHERE status <> 'pending';
CREATE INDEX dead_rt_seen ON dead_rt (seen_at);

-- name: insert_audit_records
-- One record per element of the arrays; runs in the transaction of the act it records.
INSERT INTO audit_record (environment_id, action, outcome, reason, actor_type, actor_id, purpose, request_id, ip, user_agent,
                          connection_id, user_id, organization_id, provider, version_no)
SELECT :environment_id, :action, :outcome, :reason, :actor_type, :actor_id, :purpose, :request_id, :ip, left(:user_agent, 200),
       subject.connection_id, subject.user_id, subject.organization_id, subject.provider, subject.version_no
FROM unnest(:connection_ids::uuid[], :user_ids::text[], :organization_ids::text[], :providers::text[], :version_nos::bigint[])
     AS subject (connection_id, user_id, organization_id, provider, version_no);

-- name: audit_timeline
-- The latest records of one connection that its timeline shows, newest first.
SELECT seq, at, action, outcome, reason, actor_type, actor_id, user_id, organization_id, connection_id, version_no, provider, purpose,
       request_id, ip, user_agent
FROM audit_record
WHERE environment_id = :environment_id AND connection_id = :connection_id AND action = ANY (:actions::text[])
ORDER BY seq DESC
LIMIT :most;

-- name: audit_page
-- Records newest first, between two sequence numbers (exclusive), of one connection or user where given.
SELECT seq, at, action, outcome, reason, actor_type, actor_id, user_id, organization_id, connection_id, version_no, provider, purpose,
       request_id, ip, user_agent
FROM audit_record
WHERE environment_id = :environment_id AND seq < :before_seq AND seq > :after_seq
  AND (:connection_id::uuid IS NULL OR connection_id = :connection_id)
  AND (:user_id::text IS NULL OR user_id = :user_id)
ORDER BY seq DESC
LIMIT :most;

-- name: audit_page_ascending
-- Records oldest first, behind a sequence number; the export walks them.
SELECT seq, at, action, outcome, reason, actor_type, actor_id, user_id, organization_id, connection_id, version_no, provider, purpose,
       request_id, ip, user_agent
FROM audit_record
WHERE environment_id = :environment_id AND seq > :after_seq AND seq < :before_seq
  AND (:connection_id::uuid IS NULL OR connection_id = :connection_id)
  AND (:user_id::text IS NULL OR user_id = :user_id)
ORDER BY seq
LIMIT :most;

-- name: audit_count
-- How many records an export will hold, for its progress bar.
SELECT count(*)
FROM audit_record
WHERE environment_id = :environment_id AND seq > :after_seq
  AND (:connection_id::uuid IS NULL OR connection_id = :connection_id)
  AND (:user_id::text IS NULL OR user_id = :user_id);

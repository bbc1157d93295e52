-- name: insert_event
-- One event, in the transaction of the change it tells of.
INSERT INTO event (environment_id, id, name, organization_id, data)
VALUES (:environment_id, :id, :event, :organization_id, :data);

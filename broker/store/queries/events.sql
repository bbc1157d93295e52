-- name: insert_events
-- One event per element of the arrays, in the transaction of the change they tell of.
INSERT INTO event (environment_id, id, name, organization_id, data)
SELECT :environment_id, told.id, told.name, told.organization_id, told.data
FROM unnest(:ids::uuid[], :names::text[], :organization_ids::text[], :datas::jsonb[]) AS told (id, name, organization_id, data);

-- name: server_facts
-- Which PostgreSQL this is and what its clock says.
SELECT current_setting('server_version_num')::int / 10000 AS version, clock_timestamp() AS at;

-- name: database_time
-- What the database's clock says.
SELECT clock_timestamp();

-- columns: notice_window
-- Which notice a grant's end is due for: 30, 7 or 1 days ahead.
CASE WHEN c.rt_abs_exp <= now() + interval '1 day' THEN 1 WHEN c.rt_abs_exp <= now() + interval '7 days' THEN 7 ELSE 30 END

-- name: notice_ends
-- Claim connections whose grant ends soon and of which this has not been said yet. A grant that has ended is beyond notices.
WITH due AS (
    SELECT c.environment_id, c.id, {notice_window} AS days
    FROM connection c
    WHERE c.state = 'connected' AND c.rt_abs_exp > now() AND c.rt_abs_exp <= now() + interval '30 days'
      AND (c.noticed_days IS NULL OR c.noticed_days > {notice_window})
    ORDER BY c.rt_abs_exp
    LIMIT :most
    FOR UPDATE SKIP LOCKED
)
UPDATE connection c SET noticed_days = due.days
FROM due, integration i
WHERE (c.environment_id, c.id) = (due.environment_id, due.id) AND (i.environment_id, i.id) = (c.environment_id, c.integration_id)
RETURNING c.environment_id, c.id, c.integration_id, i.slug, c.user_id, c.organization_id, c.version, due.days;

-- name: grants_ending
-- How many grants end within a day, a week and a month.
SELECT count(*) FILTER (WHERE {notice_window} = 1) AS day, count(*) FILTER (WHERE {notice_window} <= 7) AS week, count(*) AS month
FROM connection c
WHERE c.state = 'connected' AND c.rt_abs_exp > now() AND c.rt_abs_exp <= now() + interval '30 days';

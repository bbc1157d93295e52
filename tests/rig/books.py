"""What the database must show for what clients were told: findings on invariants I5, I6 and I8."""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg

from tests.rig.clients import Asked, ClientLog, HandedOut

_WITHOUT_CAUSE = """
SELECT c.id, c.user_id, c.state_reason
  FROM connection c
 WHERE c.state = 'needs_reauthorization'
   AND (coalesce(c.state_reason, '') = '' OR coalesce(c.state_cause, '') = ''
        OR NOT EXISTS (SELECT FROM audit_record a WHERE a.connection_id = c.id AND a.action <> 'token_issued'
                          AND (a.reason = c.state_reason OR c.state_reason = 'caller_forced')))
"""
_RECORDS = """
SELECT a.request_id, a.user_id, a.at, a.environment_id, c.environment_id AS owner, k.environment_id AS credential
  FROM audit_record a
  LEFT JOIN connection c ON c.id = a.connection_id
  LEFT JOIN api_key k ON k.id::text = a.actor_id
 WHERE a.action = 'token_issued' AND a.outcome = 'ok' AND a.request_id = ANY ($1)
"""


async def audit(database: asyncpg.Pool[asyncpg.Record], told: ClientLog) -> list[str]:
    """Return what violates an invariant, as sentences; an empty list is an acquittal."""
    findings = [
        f"I5: connection {row['id']} of {row['user_id']} needs reauthorization without a cause ({row['state_reason']})"
        for row in await database.fetch(_WITHOUT_CAUSE)
    ]
    asked = [left.request_id for left in told.handed_out]
    records = {row["request_id"]: row for row in await database.fetch(_RECORDS, asked)}
    for left in told.handed_out:
        findings += _unrecorded(left, records.get(left.request_id))
        findings += _not_theirs(left, records.get(left.request_id), told.givers.get(left.grant))
    return findings


def _unrecorded(left: HandedOut, record: asyncpg.Record | None) -> Iterator[str]:
    """I6: an access token was handed out after its audit record was durable."""
    if record is None:
        yield f"I6: token {left.token} left for {left.asked.user} without a record ({left.request_id})"
    elif record["at"].timestamp() > left.answered_at:
        yield f"I6: token {left.token} left for {left.asked.user} before its record ({left.request_id})"


def _not_theirs(left: HandedOut, record: asyncpg.Record | None, giver: Asked | None) -> Iterator[str]:
    """I8: whoever asks gets a token of their own environment, of a grant that the person asked for has given."""
    if giver is not None and giver != left.asked:
        yield f"I8: token {left.token}, given by {giver.user}, left for {left.asked.user}"
    if record is not None and len({record["environment_id"], record["owner"], record["credential"]}) > 1:
        yield f"I8: token {left.token} left for a credential of another environment ({left.request_id})"

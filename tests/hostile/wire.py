"""Spoil an answer as a script says, write it with every fault the knobs ask for, and say whether it was delivered."""

from __future__ import annotations

from .http import Connection, PeerGone, Response
from .knobs import Answer, Knobs

_ENDLESS_CHUNK = b" " * 1024


def spoilt(genuine: Response, answer: Answer) -> Response:
    """Return the answer the script wants in place of the genuine one."""
    body = genuine.body if answer.body is None else answer.body
    whole = answer.prefix + body
    kept = whole if answer.keep is None else whole[: answer.keep]
    return Response(
        status=answer.status,
        body=kept,
        content_type=answer.content_type,
        headers=[*genuine.headers, *answer.headers],
        length=len(whole) if answer.length == "before_cut" else answer.length,
        genuine=answer.body is None and kept == whole,
    )


async def deliver(connection: Connection, response: Response, knobs: Knobs) -> bool:
    """Return True if the genuine answer was written whole and its last byte acknowledged."""
    if knobs.lose in ("request", "response"):
        connection.reset()
        return False
    if knobs.lose == "endless":
        response.length = "absent"
    if response.length == "absent" or not response.framed or knobs.lose != "nothing" or knobs.duplicate:
        connection.reusable = False
    try:
        await connection.pause(knobs.stall_before_headers)
        await _write(connection, response, knobs)
    except PeerGone:
        connection.reusable = False
        return False
    return await connection.acknowledged() and response.genuine and response.framed and knobs.lose == "nothing"


async def _write(connection: Connection, response: Response, knobs: Knobs) -> None:
    half = len(response.body) // 2
    if knobs.lose in ("body", "half_close"):
        await connection.send(response.head() + response.body[:half])
        await _leave_halfway(connection, knobs)
    elif knobs.drip_seconds_per_byte:
        await connection.send(response.head())
        for place in range(len(response.body)):
            await connection.send(response.body[place : place + 1])
            await connection.pause(knobs.drip_seconds_per_byte)
    elif knobs.stall_in_body:
        await connection.send(response.head() + response.body[:half])
        await connection.pause(knobs.stall_in_body)
        await connection.send(response.body[half:])
    else:
        await connection.send((response.head() + response.body) * (2 if knobs.duplicate else 1))
    while knobs.lose == "endless":
        await connection.send(_ENDLESS_CHUNK)
        await connection.pause(0.01)


async def _leave_halfway(connection: Connection, knobs: Knobs) -> None:
    if knobs.lose == "body":
        # Without this wait the reset could overtake the half body, and no client would ever see one.
        await connection.acknowledged()
        connection.reset()
    else:
        connection.half_close()
        await connection.pause(60.0)

"""Steering the server from another process: /control/knobs, /control/journal, /control/reset, /control/clients, …"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from .http import Request, Response

if TYPE_CHECKING:
    from .server import HostileServer


def control(server: HostileServer, request: Request) -> Response:
    """Answer a control request; a wrong one is answered 400 with the reason."""
    if (request.method, request.path) == ("GET", "/control/journal"):
        return Response(body=server.journal.to_json())
    action = _ACTIONS.get(request.path)
    if request.method != "POST" or action is None:
        return Response(status=404, body=b'{"message": "no such control"}')
    try:
        action(server, json.loads(request.body or b"{}"))
    except (ValueError, KeyError, TypeError) as exc:
        return Response(status=400, body=json.dumps({"message": f"{type(exc).__name__}: {exc}"}).encode())
    return Response(body=b"{}")


def _knobs(server: HostileServer, command: dict[str, object]) -> None:
    """Take `{"knobs": {…}, "scope": null, "times": null}`; with *times* it is queued, else set for good."""
    changes, scope, times = command["knobs"], command.get("scope"), command.get("times")
    if not isinstance(changes, dict) or not isinstance(scope, str | None):
        raise ValueError("knobs is an object, scope a client_id or a grant id")
    if isinstance(times, int):
        server.once(times=times, scope=scope, **changes)
    else:
        server.tune(scope=scope, **changes)


def _reset(server: HostileServer, command: dict[str, object]) -> None:
    server.reset()


def _clients(server: HostileServer, command: dict[str, object]) -> None:
    server.register(str(command["client_id"]), str(command["client_secret"]))


def _revoke_grant(server: HostileServer, command: dict[str, object]) -> None:
    server.revoke_grant(str(command["grant"]))


_ACTIONS: dict[str, Callable[[HostileServer, dict[str, object]], None]] = {
    "/control/knobs": _knobs,
    "/control/reset": _reset,
    "/control/clients": _clients,
    "/control/revoke-grant": _revoke_grant,
}

"""The emulator's own endpoints, below `/_emulator`: facts, knobs, journal, and whose token it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from providers.emulator.http import Answer, Request, json_answer
from providers.emulator.knobs import HELP, KnobRefused

if TYPE_CHECKING:
    from providers.emulator.app import Emulator

PREFIX = "/_emulator"


def is_control(path: str) -> bool:
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def control(emulator: Emulator, request: Request) -> Answer:
    """Answer a request to one of the controls."""
    asked = request.method, request.path.removeprefix(PREFIX).strip("/")
    if asked == ("GET", ""):
        return json_answer(msgspec.to_builtins(emulator.printed(request.origin)))
    if asked == ("GET", "knobs"):
        return _knobs(emulator)
    if asked == ("POST", "knobs"):
        return _turn(emulator, request)
    if asked == ("GET", "journal"):
        return json_answer({"requests": [msgspec.to_builtins(entry) for entry in emulator.journal]})
    if asked == ("GET", "whoami"):
        return _whoami(emulator, request)
    return json_answer({"error": "GET /_emulator, /knobs, /journal or /whoami, or POST /_emulator/knobs"}, 404)


def _knobs(emulator: Emulator) -> Answer:
    providers = {slug: msgspec.structs.asdict(provider.knobs) for slug, provider in emulator.providers.items()}
    return json_answer({"providers": providers, "help": HELP})


def _turn(emulator: Emulator, request: Request) -> Answer:
    # A page of another site can send a form here without asking, but no JSON.
    if request.content_type != "application/json":
        return json_answer({"error": "send the knobs as application/json"}, 415)
    try:
        changes = json.loads(request.body)
    except ValueError:
        return json_answer({"error": "the body is not JSON"}, 400)
    if not isinstance(changes, dict):
        return json_answer({"error": "the body is not a JSON object"}, 400)
    try:
        emulator.turn(**changes)
    except KnobRefused as refused:
        return json_answer({"error": str(refused)}, 400)
    return _knobs(emulator)


def _whoami(emulator: Emulator, request: Request) -> Answer:
    """Answer for any provider whose access token the request carries: an API where no other is emulated."""
    for slug, provider in emulator.providers.items():
        held = provider.bearer(request)
        if held is not None:
            account = msgspec.to_builtins(provider.dialect.identity(held.grant.person))
            return json_answer({"provider": slug, "account": account, "scopes": held.grant.scopes})
    return json_answer({"error": "invalid_token"}, 401, {"www-authenticate": 'Bearer error="invalid_token"'})

"""The provider personalities of the soak: one per rotation class, and what can be the matter with any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tests.acceptance.refresh_rig import SECRET, descriptor, write_catalog
from tests.hostile import Answer, HostileServer


class Personality(NamedTuple):
    """What the descriptor says of a provider, and the knobs that make it true."""

    rotation: str
    knobs: dict[str, object]

    @property
    def kills_access_token(self) -> bool:
        return bool(self.knobs.get("kills_old_access_token"))


PERSONALITIES = {
    "r0": Personality('class = "R0"\nrefresh_token_idle_ttl = "30d"', {"rotation": "R0"}),
    "r1": Personality('class = "R1"', {"rotation": "R1"}),
    "r2": Personality('class = "R2"\nreuse_grace = "1h"', {"rotation": "R2"}),
    "r3": Personality('class = "R3"\nreuse_grace = "600s"', {"rotation": "R3", "grace_seconds": 600.0}),
    "r4": Personality('class = "R4"\nkills_old_access_token = false', {"rotation": "R4"}),
    "r4k": Personality('class = "R4"', {"rotation": "R4", "kills_old_access_token": True}),
    "r5": Personality('class = "R5"\nkills_old_access_token = false', {"rotation": "R5"}),
    "r5k": Personality('class = "R5"', {"rotation": "R5", "kills_old_access_token": True}),
}
FOREVER = ("r0", "r1", "r2")  # a lost answer never costs the grant there

_WELL: dict[str, object] = {"lose": "nothing", "refuse": None, "answer": None, "hold": False, "refresh_token": "rotate"}
TROUBLES: dict[str, dict[str, object]] = {
    "loses requests": {"lose": "request"},
    "loses answers": {"lose": "response"},
    "cuts answers": {"lose": "body"},
    "holds answers back": {"hold": True},
    "is down": {"refuse": "server_error"},
    "is throttled": {"refuse": "throttled", "retry_after": "20"},
    "refuses our secret": {"refuse": "bad_client"},
    "answers in HTML": {"answer": Answer(body=b"<html>Oops</html>", content_type="text/html", process=True)},
}
# What a refresh may say of the refresh token without rotating it: the one held goes on being good.
KEEPS = ("omitted", "null", "empty", "same")


def catalog(directory: Path) -> Path:
    """Write the descriptors and return their directory."""
    return write_catalog(directory, {slug: descriptor(slug, found.rotation) for slug, found in PERSONALITIES.items()})


def introduce(provider: HostileServer) -> None:
    """Make the server each of the personalities, by client id."""
    for slug, found in PERSONALITIES.items():
        provider.register(slug, SECRET)
        provider.tune(scope=slug, pkce="strict", **_WELL, **found.knobs)


def trouble(provider: HostileServer, slug: str, **knobs: Any) -> None:
    """Give one personality a trouble until it is healed."""
    provider.tune(scope=slug, **(_WELL | knobs))


def heal(provider: HostileServer) -> None:
    """End every trouble."""
    for slug in PERSONALITIES:
        trouble(provider, slug)

"""What clients were told, grant by grant: the second of the two records that a run is judged by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import httpx

from tests.hostile import ClientAnswer, Hop, HostileServer, fingerprint

REQUEST_ID = "x-request-id"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Whose token of which integration somebody asked for."""

    user: str
    slug: str
    organization: str = ""


@dataclass(frozen=True, kw_only=True)
class HandedOut:
    """An access token that left, as a fingerprint, and the request it left by."""

    token: str
    grant: str
    asked: Asked
    request_id: str
    answered_at: float  # epoch seconds


@dataclass
class ClientLog:
    """Every answer to the clients of the servers on one database, which all have one hostile provider."""

    provider: HostileServer
    answers: list[ClientAnswer] = field(default_factory=list)
    handed_out: list[HandedOut] = field(default_factory=list)
    givers: dict[str, Asked] = field(default_factory=dict)  # by grant: who gave it at the provider
    _grants: dict[Asked, str] = field(default_factory=dict)  # the newest of each

    def connected(self, asked: Asked, hops: Iterable[Hop]) -> None:
        """Note which grant a browser's walk brought, by the code it carried back."""
        carried = {fingerprint(code) for hop in hops for code in _codes(hop)}
        for entry in self.provider.journal.codes_exchanged():
            if entry.code in carried:
                self.givers[entry.grant] = asked
                self._grants[asked] = entry.grant

    def token(self, asked: Asked, response: httpx.Response, *, asked_at: float, answered_at: float) -> None:
        """Note the answer to a token request; refusals that say nothing about a grant are none."""
        status, reason = _standing(response)
        grant: str | None = self._grants.get(asked)
        if status == "active":
            token = response.json()["access_token"]["access_token"]
            grant = self.provider.grant_of(token)
            if grant is not None:
                self._grants[asked] = grant
                self._hand_out(asked, response, token, grant, answered_at)
        if status == "needs_reauthorization" and grant not in self.givers:
            return  # of imported tokens nobody knows here what was imported
        if grant is not None and status:
            told = ClientAnswer(grant=grant, status=status, asked_at=asked_at, answered_at=answered_at, reason=reason)
            self.answers.append(told)

    def disconnected(self, asked: Asked, *, asked_at: float, answered_at: float) -> None:
        """Note that a disconnect was acknowledged."""
        grant = self._grants.get(asked)
        if grant is not None:
            told = ClientAnswer(grant=grant, status="disconnected", asked_at=asked_at, answered_at=answered_at)
            self.answers.append(told)

    def _hand_out(self, asked: Asked, response: httpx.Response, token: str, grant: str, answered_at: float) -> None:
        left = HandedOut(
            token=fingerprint(token),
            grant=grant,
            asked=asked,
            request_id=response.headers.get(REQUEST_ID, ""),
            answered_at=answered_at,
        )
        self.handed_out.append(left)


def _standing(response: httpx.Response) -> tuple[str, str]:
    """Return what an answer says of the grant, in the judge's words, and why."""
    if response.status_code in (502, 503):
        return "unavailable", ""
    if response.status_code != 200:
        return "", ""
    body = response.json()
    if body.get("active") is True:
        return "active", ""
    named = body.get("error") == "needs_reauthorization"
    return ("needs_reauthorization", body.get("reason", "")) if named else ("", "")


def _codes(hop: Hop) -> list[str]:
    return [code for url in (hop.url, hop.location) for code in parse_qs(urlsplit(url).query).get("code", [])]

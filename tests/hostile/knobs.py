"""Every way the hostile server can be told to behave, as one typed value, and whom each setting is for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Rotation = Literal["R0", "R1", "R2", "R3", "R4", "R5"]
Endpoint = Literal["authorize", "token", "revoke", "introspect", "userinfo", "ping", "metadata"]
Refusal = Literal[
    "dead_refresh_token",
    "bad_code",
    "bad_client",
    "access_denied",
    "invalid_request",
    "invalid_scope",
    "unsupported_grant_type",
    "busy",
    "throttled",
    "server_error",
]
Dialect = Literal[
    "plain",
    "github_200",
    "slack_ok_false",
    "hubspot_status",
    "x_invalid_request",
    "zoho_throttle",
    "atlassian_access_denied",
    "salesforce_busy",
]
ExpiresIn = Literal["true", "absent", "string", "zero", "negative", "huge", "float", "null", "nan", "nested"]
Loss = Literal["nothing", "request", "response", "body", "half_close", "endless"]
Authorize = Literal[
    "approve",
    "deny",
    "lurid_error",
    "fragment_tokens",
    "query_tokens",
    "missing_state",
    "wrong_state",
    "duplicate_state",
    "duplicate_code",
    "code_and_error",
]
Iss = Literal[
    "absent",
    "correct",
    "other_host",
    "trailing_slash",
    "upper_case",
    "default_port",
    "percent_encoded",
    "empty",
    "twice",
]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer written by the test instead of the server. In JSON, bytes are base64."""

    status: int = 200
    body: bytes | None = None  # None: the genuine body, which needs process=True
    content_type: str | None = "application/json"  # None: no such header
    headers: tuple[tuple[str, str], ...] = ()
    prefix: bytes = b""  # written before the body: a byte order mark
    keep: int | None = None  # only this many bytes of the body are written; negative counts from its end
    length: int | Literal["true", "before_cut", "absent"] = "true"  # Content-Length; absent: the body ends by close
    process: bool = False  # True: the request takes effect first (tokens rotate), then this answer is written


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """How the server behaves. Classes R0 to R5 and flags K and N are those of the reliability reference."""

    # Rotation
    rotation: Rotation = "R4"
    grace_seconds: float = 600.0  # R3: how long a spent refresh token still works
    kills_old_access_token: bool = False  # flag K; with R3 the old access token lives to the end of the grace
    revoke_family: bool | None = None  # reuse of a spent refresh token ends the grant; None: in R5 only
    count_limit: int | None = None  # flag N: live grants per client and subject; one more silently ends the oldest
    refresh_token: Literal["rotate", "omitted", "null", "empty", "same"] = "rotate"  # the other four rotate nothing
    issues_refresh_token: bool = True  # at the code exchange
    # The token answer
    access_token_seconds: float = 3600.0
    expires_in: ExpiresIn = "true"
    granted_scopes: tuple[str, ...] | None = None  # None: what was asked
    extra: Mapping[str, object] = field(default_factory=dict)  # further members: instance_url, id, token_type …
    omit: tuple[str, ...] = ()  # members left out
    answer_format: Literal["json", "form", "negotiated"] = "json"  # negotiated: JSON only if Accept asks for it
    # Refusals
    dialect: Dialect = "plain"
    refuse: Refusal | None = None  # refuse without processing, in the dialect's words
    retry_after: str | None = None  # sent with throttled, busy and server_error
    revocation: Literal["200", "400", "503", "timeout", "redirect"] = "200"
    # Front channel
    authorize: Authorize = "approve"
    iss: Iss = "correct"
    callback_extra: tuple[tuple[str, str], ...] = ()
    subject: str = ""  # who signs in; empty: whoever this browser's cookie says, a new person at the first visit
    code_seconds: float = 60.0
    pkce: Literal["strict", "optional", "off", "reject"] = "optional"  # optional: checked where a challenge was sent
    client_auth: Literal["any", "basic", "post", "none", "assertion"] = "any"
    # Metadata (RFC 8414)
    metadata: Mapping[str, object] = field(default_factory=dict)  # members replaced
    metadata_omit: tuple[str, ...] = ()
    metadata_paths: tuple[str, ...] = (
        "/.well-known/oauth-authorization-server",
        "/.well-known/openid-configuration",
    )
    # Transport: everything below concerns the endpoints in `affects` only
    affects: tuple[Endpoint, ...] = ("token",)
    latency: float = 0.0  # seconds before processing
    latency_jitter: float = 0.0  # up to so many seconds more, evenly distributed
    stall_before_headers: float = 0.0  # seconds after processing
    stall_in_body: float = 0.0  # seconds in the middle of the body
    drip_seconds_per_byte: float = 0.0
    lose: Loss = "nothing"  # request: RST unprocessed; response: processed, then RST; body: RST halfway through it
    duplicate: bool = False  # the answer is written twice
    hold: bool = False  # the answer is written after a later one of the same grant: reordered
    replay: bool = False  # nothing is processed; the grant's previous token answer is written again
    answer: Answer | None = None
    date_skew: float = 0.0  # seconds added to the Date header, at every endpoint


def knobs_of(changes: Mapping[str, object]) -> Knobs:
    """Return the defaults with *changes*. Raises ValueError for an unknown knob or a value of the wrong type."""
    names = {member.name for member in dataclasses.fields(Knobs)}
    if unknown := sorted(set(changes) - names):
        raise ValueError(f"no such knob: {', '.join(unknown)}")
    return msgspec.convert(dict(changes), Knobs, from_attributes=True)


def checked(changes: Mapping[str, object]) -> dict[str, object]:
    """Return *changes* with every value of its knob's type. Raises ValueError as `knobs_of`."""
    whole = knobs_of(changes)
    return {name: getattr(whole, name) for name in changes}


@dataclass
class _Once:
    changes: dict[str, object]
    endpoints: tuple[str, ...]
    scope: str | None
    times: int


class KnobBoard:
    """The settings in force: for everybody, over them those of a client or a grant, over them the one-shot queue."""

    def __init__(self, base: Knobs) -> None:
        self._first = base
        self.base = base
        self._scoped: dict[str, dict[str, object]] = {}
        self._queue: list[_Once] = []

    def tune(self, *, scope: str | None = None, **changes: object) -> None:
        """Set knobs for good. *scope*: a client_id or a grant id; None: everybody."""
        if scope is None:
            self.base = dataclasses.replace(self.base, **checked(changes))  # type: ignore[arg-type]
        else:
            self._scoped.setdefault(scope, {}).update(checked(changes))

    def once(self, *, times: int = 1, scope: str | None = None, **changes: object) -> None:
        """Queue a setting for the next *times* requests to the endpoints it affects; the queue is served in order."""
        valid = checked(changes)
        endpoints = dataclasses.replace(self.base, **valid).affects  # type: ignore[arg-type]
        self._queue.append(_Once(valid, endpoints, scope, times))

    def resolve(self, endpoint: str, *, client_id: str, grant: str | None) -> Knobs:
        """Return the knobs of this request; takes it off the one-shot queue when that has something for it."""
        changes: dict[str, object] = {}
        scopes = [client_id] if grant is None else [client_id, grant]
        for scope in scopes:
            changes |= self._scoped.get(scope, {})
        for step in self._queue:
            if endpoint in step.endpoints and (step.scope is None or step.scope in scopes):
                changes |= step.changes
                step.times -= 1
                break
        self._queue = [step for step in self._queue if step.times > 0]
        return dataclasses.replace(self.base, **changes) if changes else self.base  # type: ignore[arg-type]

    def reset(self) -> None:
        """Return to the knobs the server was built with."""
        self.base = self._first
        self._scoped.clear()
        self._queue.clear()

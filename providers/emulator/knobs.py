"""The knobs of an emulated provider: how it behaves today, set at start and turned while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

RefreshMood = Literal["ok", "dead", "busy", "throttled", "server_error", "invalid_client", "garbage", "hang"]


class KnobRefused(ValueError):
    """There is no such knob, or it does not take that value; the message says which."""


class Knobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every knob of one provider, with what it does in words that `penstock emulate --help` prints."""

    consent: Annotated[
        Literal["ask", "auto", "deny"],
        Meta(description="ask: show the consent page; auto: approve at once; deny: refuse at once"),
    ] = "ask"
    user: Annotated[
        Literal["ada", "grace"],
        Meta(description="who approves under consent=auto, and who is picked first on the consent page"),
    ] = "ada"
    granted_scopes: Annotated[
        tuple[str, ...],
        Meta(description="grant only these of the scopes asked for; empty: all of them"),
    ] = ()
    access_token_ttl: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="seconds an access token lives; 0: for ever; null: as long as the provider's own"),
    ] = None
    rotation: Annotated[
        Literal["R0", "R1", "R2", "R3", "R4", "R5"] | None,
        Meta(description="rotation class, R0 to R5; null: the provider's own"),
    ] = None
    refresh: Annotated[
        RefreshMood,
        Meta(
            description="what a refresh answers: ok; dead, busy, throttled, invalid_client in the provider's words; "
            "server_error: 503 before anything happened; garbage: rotates, then answers what nobody can read; "
            "hang: rotates, then answers after hang_seconds"
        ),
    ] = "ok"
    hang_seconds: Annotated[float, Meta(ge=0, le=600, description="how long refresh=hang takes")] = 30.0
    latency: Annotated[float, Meta(ge=0, le=600, description="seconds every answer takes")] = 0.0
    clock_skew: Annotated[
        float, Meta(description="seconds the provider's clock is ahead of ours; negative: behind")
    ] = 0.0
    omit_refresh_token: Annotated[bool, Meta(description="answer the code exchange without a refresh token")] = False
    omit: Annotated[
        tuple[str, ...],
        Meta(description="members left out of every token answer, such as instance_url or expires_in"),
    ] = ()
    form_answers: Annotated[
        bool,
        Meta(description="form-encode token answers even if JSON is asked for, where the provider has such answers"),
    ] = False
    token_length: Annotated[
        Annotated[int, Meta(ge=0, le=100_000)],
        Meta(description="characters a token has at least; 0: as many as the provider's own"),
    ] = 0

    def turned(self, changes: Mapping[str, object]) -> Knobs:
        """Return these knobs with *changes* made; text is read by the knob's type. Raises `KnobRefused`."""
        unknown = sorted(changes.keys() - _TYPES.keys())
        if unknown:
            raise KnobRefused(f"there is no knob {unknown[0]!r}; there are {', '.join(_TYPES)}")
        return msgspec.structs.replace(self, **{name: _value(name, value) for name, value in changes.items()})


_TYPES: Mapping[str, Any] = {
    name: hint for name, hint in get_type_hints(Knobs, include_extras=True).items() if name in Knobs.__struct_fields__
}

HELP: Mapping[str, str] = {
    name: next(meta.description for meta in hint.__metadata__ if isinstance(meta, Meta) and meta.description)
    for name, hint in _TYPES.items()
}


def _value(name: str, value: object) -> object:
    if isinstance(value, str) and name in {"granted_scopes", "omit"}:
        value = [part for part in value.split(",") if part]
    elif value == "":
        value = None
    try:
        return msgspec.convert(value, _TYPES[name], strict=False)
    except msgspec.ValidationError as refused:
        raise KnobRefused(f"{name}: {refused}") from refused


def read_settings(settings: Iterable[str]) -> dict[str | None, dict[str, str]]:
    """Read `name=value` and `provider.name=value` as typed on a command line; the key None is every provider.

    Raises `KnobRefused` for text of another form; names and values are checked when the knobs are turned.
    """
    by_provider: dict[str | None, dict[str, str]] = {}
    for setting in settings:
        where, equals, value = setting.partition("=")
        if not equals:
            raise KnobRefused(f"{setting!r} is not name=value")
        provider, _, name = where.rpartition(".")
        by_provider.setdefault(provider or None, {})[name] = value
    return by_provider

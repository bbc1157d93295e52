"""Error dialects: what a provider's refusal means, by the descriptor's `[errors]` and the outcome table's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from broker.oauth.answer import error_code, find, scalar
from broker.oauth.http import HttpResponse
from broker.oauth.lifetime import retry_after
from broker.oauth.model import ErrorClass, ErrorMatch, Errors, ProviderDescriptor, TokenOutcome


def refusal(
    descriptor: ProviderDescriptor, response: HttpResponse, members: Mapping[str, Any], *, now: datetime
) -> TokenOutcome:
    """Return what a token request came to that brought no token; *members* is empty for an unreadable body.

    `[[errors.match]]` before the status, the status before the lists: nobody is disconnected by a provider that fails
    (429, 5xx), whatever code it puts into the body. A redirect is never believed.
    """
    return TokenOutcome(
        kind=_kind(descriptor.errors, response, members),
        error=error_code(find(members, descriptor.errors.code)),
        retry_after=retry_after(response, now=now),
    )


def _kind(
    errors: Errors, response: HttpResponse, members: Mapping[str, Any]
) -> ErrorClass | Literal["unavailable", "unknown"]:
    status = response.status
    if status < 200 or 300 <= status < 400:
        return "unknown"
    code, text = scalar(find(members, errors.code)), scalar(find(members, errors.description))
    for match in errors.match:
        if _matches(match, status, code, text):
            return match.error_class
    if status == 429:
        return "throttled"
    if status >= 500:
        return "unavailable"
    return _listed(errors, code) or _unlisted(response, code)


def _matches(match: ErrorMatch, status: int, code: str | None, text: str | None) -> bool:
    wanted = match.description_contains
    return (
        match.status in {None, status}
        and match.code in {None, code}
        and (wanted is None or wanted.casefold() in (text or "").casefold())
    )


def _listed(errors: Errors, code: str | None) -> ErrorClass | None:
    lists: tuple[tuple[ErrorClass, tuple[str, ...]], ...] = (
        ("dead", errors.dead),
        ("busy", errors.busy),
        ("throttled", errors.throttled),
        ("client_fault", errors.client_fault),
        ("denied", errors.denied),
    )
    return next((kind for kind, codes in lists if code in codes), None)


def _unlisted(response: HttpResponse, code: str | None) -> ErrorClass | Literal["unknown"]:
    # RFC 6749 §5.2: 401 is for failed client authentication, and then names the scheme.
    if response.status == 401 and (code is None or "www-authenticate" in response.headers):
        return "client_fault"
    return "unknown"

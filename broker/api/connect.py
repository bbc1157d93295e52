"""The browser's side of connecting: the link's page, the departure, the provider's callback, and the pages at the end.

Failures are answered as pages, too. They see `code` and `state`: no third-party content, no cache, no referrer.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from litestar import Response, get, post
from litestar.datastructures import Cookie
from litestar.params import FromPath

from broker.api.problems import problem_of
from broker.api.requests import ApiRequest, info_of, services
from broker.connections.connect.authorize import Landing
from broker.connections.connect.flow import FLOW_LIFE
from broker.errors import ConnectFailed
from broker.web.pages import OwnerLine, Page, ScopeLine

LINK = "/data-integrations/{ticket:str}/authorize-redirect"
_REFERENCE = re.compile(r"req_[A-Za-z0-9_-]{16}")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def _page(page: Page, *cookies: Cookie) -> Response[bytes]:
    return Response(page.body, status_code=page.status, headers=dict(page.headers), cookies=cookies)


def _failure_page(request: ApiRequest, exc: Exception) -> Response[bytes]:
    """Answer what went wrong as a page: whoever reads it has a browser."""
    problem = problem_of(exc)
    pages, request_id = services(request).pages, info_of(request).request_id
    return _page(pages.failed(code=problem.body.code, request_id=request_id, status=problem.status))


BROWSER: dict[str, Any] = {"include_in_schema": False, "exception_handlers": {Exception: _failure_page}}


# --- the link -------------------------------------------------------------------------------------------------------


@get(LINK, **BROWSER)
async def landing(request: ApiRequest, ticket: FromPath[str]) -> Response[bytes]:
    """Show who asks for what. Opening the link uses nothing up and sets nothing: scanners open links too."""
    use = services(request)
    found = await use.authorize.landing(ticket)
    name, action = found.provider.descriptor.display_name, f"/data-integrations/{ticket}/authorize-redirect"
    if found.bound:
        return _page(use.pages.proceed(provider_name=name, action=action))
    owner = found.request.connection_owner
    return _page(
        use.pages.confirm(
            provider_name=name,
            owner=OwnerLine(user_id=owner.user_id, organization_id=owner.organization_id),
            purpose=found.provider.integration.description,
            scopes=_scope_lines(found),
            action=action,
            reauthorize=found.request.target_id is not None,
            expires_in_minutes=(found.request.expires_at - datetime.now(UTC)) // timedelta(minutes=1),
        )
    )


def _scope_lines(found: Landing) -> list[ScopeLine]:
    known = found.provider.descriptor.scopes
    return [
        ScopeLine(name, known[name].description, known[name].scope_class)
        if name in known
        else ScopeLine(name, "", "unknown")
        for name in found.request.scopes
    ]


@post(LINK, **BROWSER)
async def depart(request: ApiRequest, ticket: FromPath[str]) -> Response[bytes]:
    """The person agreed: send this browser, and no other, to the provider."""
    use = services(request)
    _check_origin(request)
    departure = await use.authorize.depart(ticket, info_of(request))
    cookie = _cookie(request, departure.cookie_name, departure.cookie_value, FLOW_LIFE)
    return _page(use.pages.redirect(use.providers.browser_url(departure.url)), cookie)


def _check_origin(request: ApiRequest) -> None:
    """Refuse a post from another site's page: browsers name the origin of every form post."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin != _origin(services(request).settings.public_url) or site not in (None, "same-origin"):
        raise ConnectFailed("cross_site_request", "The confirmation did not come from this page.")


def _origin(url: str) -> str:
    """Return the origin as browsers write it: lower case, and without the scheme's own port (RFC 6454 §6.2)."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


# --- the cookie -----------------------------------------------------------------------------------------------------


def _prefix(request: ApiRequest) -> str:
    # Browsers then insist on Secure, Path=/ and no Domain: no sibling host can set it (RFC 6265bis §4.1.3).
    return "__Host-" if services(request).settings.secure_cookies else ""


def _cookie(request: ApiRequest, name: str, value: str, life: timedelta) -> Cookie:
    return Cookie(
        key=_prefix(request) + name,
        value=value,
        path="/",
        max_age=int(life.total_seconds()),
        httponly=True,
        secure=services(request).settings.secure_cookies,
        samesite="lax",  # the callback is a navigation that another site begins
    )


def _cookies(request: ApiRequest) -> dict[str, list[str]]:
    """Return our cookies by the name without prefix, every value of each: a framework would silently pick one.

    One that should have the prefix and has not may come from a sibling host, and does not count.
    """
    prefix = _prefix(request)
    found: dict[str, list[str]] = {}
    for header in request.headers.getall("cookie", []):
        for pair in header.split(";"):
            name, equals, value = pair.strip().partition("=")
            if equals and name.startswith(prefix):
                found.setdefault(name.removeprefix(prefix), []).append(value)
    return found


# --- back from the provider -----------------------------------------------------------------------------------------


@get("/data-integrations/{slug:str}/{redirect_key:str}/callback", **BROWSER)
async def callback(request: ApiRequest, slug: FromPath[str], redirect_key: FromPath[str]) -> Response[bytes]:
    """Take the provider's answer and send the browser on, to a clean address."""
    use = services(request)
    query: bytes = request.scope["query_string"]
    arrival = await use.complete.callback(slug, redirect_key, query, _cookies(request), info_of(request))
    ours = "/pipes/finished"
    if arrival.error_code is not None:
        ours = f"/pipes/failed/{arrival.error_code}?reference={info_of(request).request_id}"
    return _page(use.pages.redirect(arrival.to or ours), _cookie(request, arrival.cookie_name, "", timedelta(0)))


@get("/pipes/finished", **BROWSER)
async def finished(request: ApiRequest) -> Response[bytes]:
    """Say that the account is connected."""
    return _page(services(request).pages.finished(provider_name=None))


@get("/pipes/failed/{code:str}", **BROWSER)
async def failed(request: ApiRequest, code: FromPath[str]) -> Response[bytes]:
    """Say what went wrong, from a closed list of texts, and under which request it is on record."""
    given = request.query_params.get("reference", "")
    reference = given if _REFERENCE.fullmatch(given) else info_of(request).request_id
    return _page(services(request).pages.failed(code=code, request_id=reference))


@get("/pipes/redirecting", **BROWSER)
async def redirecting(request: ApiRequest) -> Response[bytes]:
    """Show that something is happening."""
    return _page(services(request).pages.redirecting())


HANDLERS = [landing, depart, callback, finished, failed, redirecting]

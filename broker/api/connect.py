"""The browser's side of connecting: the link's page, the departure, the provider's callback, and the pages at the end.

These answer HTML and redirects, and see `code` and `state`: no third-party content, no cache, no referrer.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from litestar import Response, get, post
from litestar.datastructures import Cookie
from litestar.params import FromPath

from broker.api.requests import ApiRequest, info_of, services
from broker.connections.authorize import Arrival, Landing
from broker.errors import BrokerError, ConnectFailed
from broker.web.pages import OwnerLine, Page, ScopeLine

LINK = "/data-integrations/{ticket:str}/authorize-redirect"
SEE_OTHER = 303  # never 307: a form's body must not be replayed at the next hop
CLEAN = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


def _page(page: Page) -> Response[bytes]:
    return Response(page.body, status_code=page.status, headers=dict(page.headers), media_type="text/html")


def _failed(request: ApiRequest, exc: BrokerError) -> Response[bytes]:
    code = exc.error_code if isinstance(exc, ConnectFailed) else exc.code
    return _page(services(request).pages.failed(code=code, request_id=info_of(request).request_id))


@get(LINK, include_in_schema=False)
async def landing(request: ApiRequest, ticket: FromPath[str]) -> Response[bytes]:
    """Show who asks for what. Opening the link uses nothing up and sets nothing: scanners open links too."""
    use = services(request)
    try:
        found = await use.authorize.landing(ticket)
    except BrokerError as exc:
        return _failed(request, exc)
    action = f"/data-integrations/{ticket}/authorize-redirect"
    if found.bound:
        return _page(use.pages.proceed(provider_name=found.descriptor.display_name, action=action))
    return _page(
        use.pages.confirm(
            provider_name=found.descriptor.display_name,
            owner=OwnerLine(
                user_id=found.request.connection_owner.user_id, organization_id=found.request.organization_id
            ),
            purpose=found.integration.description,
            scopes=_scope_lines(found),
            action=action,
            reauthorize=found.request.target_id is not None,
            expires_in_minutes=10,
        )
    )


def _scope_lines(found: Landing) -> list[ScopeLine]:
    lines = []
    for name in found.request.scopes:
        info = found.descriptor.scopes.get(name)
        description = info.description if info else name
        kind: Literal["read", "write", "admin"] = info.scope_class if info else "write"
        lines.append(ScopeLine(name, description, kind))
    return lines


@post(LINK, status_code=SEE_OTHER, include_in_schema=False)
async def depart(request: ApiRequest, ticket: FromPath[str]) -> Response[Any]:
    """The person agreed: send this browser, and no other, to the provider."""
    use = services(request)
    try:
        _check_origin(request)
        departure = await use.authorize.depart(ticket, info_of(request))
    except BrokerError as exc:
        return _failed(request, exc)
    secure = use.settings.secure_cookies
    cookie = Cookie(
        key=_cookie_name(departure.cookie_name, secure=secure),
        value=departure.cookie_value,
        path="/",
        max_age=600,
        httponly=True,
        secure=secure,
        samesite="lax",
    )
    url = use.providers.browser_url(departure.url)
    return Response(None, status_code=SEE_OTHER, headers={**CLEAN, "Location": url}, cookies=[cookie])


def _check_origin(request: ApiRequest) -> None:
    """Refuse a post from another site's page: browsers name the origin of every form post."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    ours = urlsplit(services(request).settings.public_url)
    if origin != f"{ours.scheme}://{ours.netloc}" or site not in (None, "same-origin"):
        raise ConnectFailed("browser_mismatch", "The confirmation did not come from this page.")


def _cookie_name(name: str, *, secure: bool) -> str:
    # The prefix makes browsers insist on Secure, Path=/ and no Domain: no sibling host can set it (RFC 6265bis).
    return f"__Host-{name}" if secure else name


@get("/data-integrations/{slug:str}/{redirect_key:str}/callback", include_in_schema=False)
async def callback(request: ApiRequest, slug: FromPath[str], redirect_key: FromPath[str]) -> Response[Any]:
    """Take the provider's answer and send the browser on, to a clean address."""
    use = services(request)
    query: bytes = request.scope["query_string"]
    arrival = await use.authorize.callback(slug, redirect_key, query, _cookies(request), info_of(request))
    return _sent_on(request, arrival)


def _cookies(request: ApiRequest) -> dict[str, list[str]]:
    """Return every cookie, repeated names included: a framework would silently pick one."""
    found: dict[str, list[str]] = {}
    for header in request.headers.getall("cookie", []):
        for pair in header.split(";"):
            name, equals, value = pair.strip().partition("=")
            if equals:
                found.setdefault(name, []).append(value)
    return found


def _sent_on(request: ApiRequest, arrival: Arrival) -> Response[Any]:
    cookies = []
    if arrival.cookie_name is not None:
        secure = services(request).settings.secure_cookies
        name = _cookie_name(arrival.cookie_name, secure=secure)
        cookies = [Cookie(key=name, value="", path="/", max_age=0, httponly=True, secure=secure, samesite="lax")]
    to = arrival.to
    if to is None:
        to = "/pipes/finished" if arrival.outcome == "finished" else f"/pipes/failed/{arrival.error_code}"
    return Response(None, status_code=SEE_OTHER, headers={**CLEAN, "Location": to}, cookies=cookies)


@get("/pipes/finished", include_in_schema=False)
async def finished(request: ApiRequest) -> Response[bytes]:
    """Say that the account is connected."""
    return _page(services(request).pages.finished(provider_name=None))


@get("/pipes/failed/{code:str}", include_in_schema=False)
async def failed(request: ApiRequest, code: FromPath[str]) -> Response[bytes]:
    """Say what went wrong, from a closed list of texts."""
    return _page(services(request).pages.failed(code=code, request_id=info_of(request).request_id))


@get("/pipes/redirecting", include_in_schema=False)
async def redirecting(request: ApiRequest) -> Response[bytes]:
    """Show that something is happening."""
    return _page(services(request).pages.redirecting())


HANDLERS = [landing, depart, callback, finished, failed, redirecting]

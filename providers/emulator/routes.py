"""Which endpoint of which provider a request means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from providers.emulator import pages
from providers.emulator.authorize import authorize
from providers.emulator.dialects.base import Resource, Visit
from providers.emulator.http import Answer, Malformed, Request, json_answer
from providers.emulator.look_ups import introspect, jwks, look_up, userinfo
from providers.emulator.provider import Provider
from providers.emulator.revocation import revoke, revoke_by_request
from providers.emulator.routing import UrlPattern, host_pattern, pattern_of
from providers.emulator.token import Kind, token

Endpoint = Callable[[Provider, Request, Mapping[str, str]], Answer]


class Route(NamedTuple):
    """One endpoint of one provider."""

    provider: Provider
    name: str
    methods: Collection[str]
    pattern: UrlPattern
    endpoint: Endpoint

    def answer(self, request: Request) -> Answer:
        path = self.pattern.match(request.host, request.path, request.query) or {}
        return self.endpoint(self.provider, request, path)


def routes_of(provider: Provider) -> Iterator[Route]:
    """Yield every endpoint that a provider's descriptor and dialect name."""
    descriptor = provider.descriptor
    endpoints: tuple[tuple[str, str | None, Collection[str], Endpoint], ...] = (
        ("authorize", descriptor.authorization_endpoint, ("GET", "POST"), _without_path(authorize)),
        ("introspect", descriptor.introspection_endpoint, ("POST",), introspect),
        ("userinfo", descriptor.userinfo_endpoint, ("GET", "POST"), userinfo),
        ("jwks", descriptor.jwks_uri, ("GET",), jwks),
        ("revoke", descriptor.revocation_endpoint, ("POST",), revoke),
    )
    for name, template, methods, endpoint in endpoints:
        if template is not None:
            yield Route(provider, name, methods, pattern_of(descriptor, template), endpoint)
    if descriptor.quirks.authorization_in_fragment:
        page = pattern_of(descriptor, (descriptor.authorization_endpoint or "").partition("#")[0])
        yield Route(provider, "authorize", ("GET",), page, lambda provider, _request, _path: pages.fragment(provider))
    yield from _token_routes(provider)
    yield from _look_up_routes(provider)
    if descriptor.revocation.style == "request" and descriptor.revocation.endpoint is not None:
        pattern = pattern_of(descriptor, descriptor.revocation.endpoint)
        yield Route(provider, "revoke", (descriptor.revocation.method,), pattern, revoke_by_request)
    for resource in provider.dialect.resources():
        pattern = host_pattern(descriptor.api.allowed_hosts, resource.path)
        yield Route(provider, "api", (resource.method,), pattern, partial(_visit, resource))


def _token_routes(provider: Provider) -> Iterator[Route]:
    """Yield the endpoints that issue tokens: one for every grant, or one for several."""
    descriptor, exchange = provider.descriptor, provider.descriptor.quirks.exchange
    grants: tuple[tuple[str | None, Kind, str], ...] = (
        (descriptor.token_endpoint, "code", "POST"),
        (descriptor.quirks.refresh_endpoint or descriptor.token_endpoint, "refresh", descriptor.quirks.refresh_method),
        (exchange.endpoint if exchange else None, "exchange", exchange.method if exchange else ""),
    )
    for template in dict.fromkeys(template for template, _, _ in grants if template is not None):
        kinds = frozenset(kind for where, kind, _ in grants if where == template)
        methods = {method for where, _, method in grants if where == template}
        endpoint = _without_path(partial(token, kinds=kinds))
        yield Route(provider, "token", methods, pattern_of(descriptor, template), endpoint)


def _look_up_routes(provider: Provider) -> Iterator[Route]:
    descriptor = provider.descriptor
    methods: dict[str, set[str]] = {}
    if descriptor.account.source == "request" and descriptor.account.endpoint is not None:
        methods.setdefault(descriptor.account.endpoint, set()).add(descriptor.account.method)
    for source in descriptor.metadata.values():
        if source.confirm is not None:
            methods.setdefault(source.confirm.endpoint, set()).add("GET")
    for template, allowed in methods.items():
        endpoint = _without_path(partial(look_up, endpoint=template))
        yield Route(provider, "look-up", allowed, pattern_of(descriptor, template), endpoint)


def _without_path(answer: Callable[[Provider, Request], Answer]) -> Endpoint:
    return lambda provider, request, _path: answer(provider, request)


def _visit(resource: Resource, provider: Provider, request: Request, path: Mapping[str, str]) -> Answer:
    held = provider.bearer(request)
    return provider.dialect.dead_token() if held is None else resource.answer(Visit(request, path, held))


# --- choosing ---------------------------------------------------------------------------------------------------------


def choose(routes: Sequence[Route], request: Request) -> Route | Answer:
    """Return the route that a request means, or the answer to one that means none (404, 405).

    Providers that share a host and path are told apart by the client, code or token that the request shows.
    """
    found = [route for route in routes if route.pattern.match(request.host, request.path, request.query) is not None]
    if not found:
        return json_answer({"error": f"nothing is emulated at this path of {request.host}"}, 404)
    allowed = [route for route in found if request.method in route.methods]
    if not allowed:
        methods = sorted({method for route in found for method in route.methods})
        return json_answer({"error": "method not allowed"}, 405, {"allow": ", ".join(methods)})
    if len(allowed) == 1:
        return allowed[0]
    shown = _shown(request)
    recognized = (route for route in allowed if route.provider.knows([*shown, *_bearer(route, request)]))
    return next(recognized, allowed[0])


def _shown(request: Request) -> list[str]:
    """Return every value a request shows; what cannot be read shows nothing, and its endpoint will say so."""
    try:
        basic = request.basic() or ()
        return [*request.query_params().values(), *request.body_params()[0].values(), *basic, *request.path.split("/")]
    except Malformed:
        return []


def _bearer(route: Route, request: Request) -> list[str]:
    token = route.provider.presented_token(request)
    return [] if token is None else [token]

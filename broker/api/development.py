"""The page at "/" of `penstock dev`: what runs where, and links to connect the demo's people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar import Response, get

from broker.api.requests import ApiRequest, info_of, services
from broker.api.services import Services
from broker.callers.model import Caller
from broker.connections.connect.authorize import Start
from broker.connections.model import Owner
from broker.errors import BrokerError


def handlers(environment_id: str, people: Sequence[str]) -> list[Any]:
    """Return the routes that only a development server has."""

    @get("/", include_in_schema=False)
    async def console(request: ApiRequest) -> Response[bytes]:
        """Show fresh connect links. Making one sends nothing anywhere, and opening it asks before anything happens."""
        use = services(request)
        caller = Caller(environment_id=environment_id, actor_type="operator", request=info_of(request))
        page = use.pages.development(
            title="Penstock for development",
            facts=[
                ("API", use.settings.public_url),
                ("Environment", environment_id),
                *(("Emulated providers", origin) for origin in sorted(set(use.settings.provider_hosts.values()))),
                *[(person, await _connected(use, environment_id, person)) for person in people],
                ("Metrics", f"{use.settings.public_url}/metrics"),
                ("OpenAPI", f"{use.settings.public_url}/openapi.json"),
            ],
            links=await connect_links(use, caller, people),
        )
        return Response(page.body, status_code=page.status, headers=dict(page.headers), media_type="text/html")

    return [console]


async def connect_links(use: Services, caller: Caller, people: Sequence[str]) -> list[tuple[str, str]]:
    """Begin a flow for everybody at every provider; return what each link does, and the link, good for ten minutes."""
    links = []
    for person in people:
        for integration in await use.integrations.of_ownership(caller.environment_id, "user"):
            try:
                started = await use.authorize.start(caller, Start(slug=integration.slug, user_id=person))
                name = use.providers.descriptor(integration).display_name
            except BrokerError:
                continue  # disabled, not completely configured, or the person would have to say more first
            url = f"{use.settings.public_url}/data-integrations/{started.ticket}/authorize-redirect"
            links.append((f"Connect {name} for {person}", url))
    return links


async def _connected(use: Services, environment_id: str, person: str) -> str:
    found = await use.accounts.connections_of(environment_id, Owner(user_id=person))
    return ", ".join(f"{each.slug} {each.state}" for each in found) or "nothing connected"

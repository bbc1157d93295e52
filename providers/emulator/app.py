"""The emulator as an ASGI application: many providers on one port, told apart by the host they are called by."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from broker.errors import DescriptorError
from broker.oauth.catalog import Catalog
from providers.emulator import asgi
from providers.emulator.controls import control, is_control
from providers.emulator.facts import Facts, facts_of
from providers.emulator.http import Answer, Request, json_answer
from providers.emulator.journal import Journal
from providers.emulator.knobs import KnobRefused, Knobs
from providers.emulator.people import PEOPLE
from providers.emulator.provider import Provider
from providers.emulator.routes import choose, routes_of
from providers.emulator.signing import Signer

_DEFAULT_KNOBS = Knobs()


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Emulator:
    """Answer for every provider of *slugs*, or of the whole catalog where none is named.

    A server reaches a provider by its `Host` header, a browser by `/_host/<host>/<path>`. Nothing outlives the process.
    Raises `DescriptorError` for a slug that the catalog lacks.
    """

    def __init__(
        self,
        slugs: Sequence[str] = (),
        *,
        catalog: Catalog,
        knobs: Knobs = _DEFAULT_KNOBS,
        now: Callable[[], datetime] = _utc_now,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        unknown = [slug for slug in slugs if catalog.get(slug) is None]
        if unknown:
            raise DescriptorError(f"{unknown[0]!r} is not in the catalog; there are {', '.join(catalog.slugs)}.")
        signer = Signer()
        self.providers: Mapping[str, Provider] = {
            descriptor.slug: Provider(descriptor, knobs=knobs, signer=signer, now=now, random=random)
            for descriptor in catalog
            if not slugs or descriptor.slug in slugs
        }
        self.journal = Journal()
        self._now = now
        self._routes = [route for provider in self.providers.values() for route in routes_of(provider)]

    # --- for whoever starts it ----------------------------------------------------------------------------------------

    def provider_hosts(self, origin: str) -> dict[str, str]:
        """Return what `PENSTOCK_PROVIDER_HOSTS` has to say about an emulator at *origin*, host by host."""
        rules = {rule for route in self._routes for rule in route.pattern.hosts}
        rules |= {rule for provider in self.providers.values() for rule in provider.descriptor.api.allowed_hosts}
        # "*": an operator may name any host, and nothing can stand in for all of them.
        hosts = sorted(f"*{rule}" if rule.startswith(".") else rule for rule in rules if rule != "*")
        return dict.fromkeys(hosts, origin.rstrip("/"))

    def printed(self, origin: str) -> Facts:
        """Return what has to be known to use an emulator at *origin*."""
        return facts_of(self.providers.values(), self.provider_hosts(origin), origin)

    def turn(self, provider: str | None = None, **changes: object) -> None:
        """Turn knobs of one provider, or of all, while it runs; `expire_now` and `revoke_user` act once.

        Raises `KnobRefused`; nothing has changed then.
        """
        if provider is not None and provider not in self.providers:
            raise KnobRefused(f"{provider!r} is not emulated; there are {', '.join(self.providers)}")
        chosen = [self.providers[provider]] if provider is not None else list(self.providers.values())
        expire_now, revoke_user = changes.pop("expire_now", False), changes.pop("revoke_user", None)
        if not isinstance(expire_now, bool):
            raise KnobRefused("expire_now is true or false")
        if revoke_user is not None and revoke_user not in PEOPLE:
            raise KnobRefused(f"revoke_user is one of {', '.join(PEOPLE)}")
        turned = [each.knobs.turned(changes) for each in chosen]
        for each, knobs in zip(chosen, turned, strict=True):
            each.knobs = knobs
            if expire_now:
                each.expire_now()
            if revoke_user is not None:
                each.revoke_user(str(revoke_user))

    # --- for those who call -------------------------------------------------------------------------------------------

    async def __call__(self, scope: asgi.Message, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one HTTP request. There is nothing to start or stop, so lifespan is not spoken."""
        if scope["type"] != "http":
            raise ValueError(f"the emulator does not speak {scope['type']}")
        try:
            request = await asgi.read(scope, receive)
        except asgi.TooLarge:
            await asgi.send(send, json_answer({"error": "the body is too large"}, 413))
            return
        answer = control(self, request) if is_control(request.path) else await self._answer(request)
        if answer.delay:
            await asyncio.sleep(answer.delay)
        await asgi.send(send, answer)

    async def _answer(self, request: Request) -> Answer:
        route = choose(self._routes, request)
        if isinstance(route, Answer):
            self.journal.note(request, at=self._now(), provider=None, endpoint=None, status=route.status)
            return route
        await asyncio.sleep(route.provider.knobs.latency)
        answer = route.answer(request)
        slug = route.provider.descriptor.slug
        self.journal.note(request, at=self._now(), provider=slug, endpoint=route.name, status=answer.status)
        return answer

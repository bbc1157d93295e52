"""The property state machine: any order of what callers, people, operators, providers, clocks and crashes can do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from broker.failpoint import NAMES
from tests.soak.court import Account, Court
from tests.soak.providers import KEEPS, PERSONALITIES, TROUBLES, heal, trouble
from tests.soak.world import Node, Template, Unavailable, World, opened_world

Done = TypeVar("Done")
MINUTE, HOUR = 60.0, 3600.0
# Within a token's life, about its margins, past its end, past a lease, past a grace, past a day.
MOMENTS = (5.0, MINUTE, 200.0, 11 * MINUTE, 56 * MINUTE, 61 * MINUTE, 25 * HOUR)
# The answer is nowhere but in memory there.
WINDOW = ("http.after_send", "http.mid_body", "http.after_body", "receipt.before")
DISTURBED_REFRESHES = tuple(
    name for name in NAMES if name.split(".")[0] in ("prepare", "lease", "http", "receipt", "parse", "commit", "orphan")
)
STALL = 0.5  # seconds, real: as long as a node stands still over its call
_NODES = st.integers(0, 1)
_MEANWHILE = st.sampled_from(
    [
        ("chores", "time", "token"),
        ("chores", "time", "token", "chores", "token"),
        ("chores", "time", "token", "reauthorize"),
        ("token",),
        ("disconnect", "chores"),
        ("reauthorize", "token"),
    ]
)
_SLUGS = st.sampled_from(sorted(PERSONALITIES))


class PenstockMachine(RuleBasedStateMachine):
    """Two nodes, one database, every kind of provider; what must hold is checked after each step and at the end."""

    connections: Bundle[Account] = Bundle("connections")

    def __init__(self, runner: asyncio.Runner, template: Template) -> None:
        super().__init__()
        self._runner, self._stack = runner, AsyncExitStack()
        self.world: World = self._run(self._stack.enter_async_context(opened_world(template)))
        self.court = Court(self.world)
        self._people = 0

    def _run(self, work: Coroutine[Any, Any, Done]) -> Done:
        return self._runner.run(work)

    def _do(self, work: Awaitable[object]) -> None:
        """Let something happen, and what it sets going come to rest; being told to come back later is no failure."""

        async def happening() -> None:
            with suppress(Unavailable):
                await work
            await self.world.rest()

        self._run(happening())

    # --- people and callers -------------------------------------------------------------------------------------------

    @initialize(target=connections, slug=_SLUGS)
    def first_connection(self, slug: str) -> Account:
        return self._run(self._connected(self.world.nodes[0], slug))

    @rule(target=connections, slug=_SLUGS)
    def connect(self, slug: str) -> Account:
        """A new person connects an account, at a moment when the provider is well."""
        self.provider_recovers(slug)
        return self._run(self._connected(self._run(self._any_node()), slug))

    async def _connected(self, node: Node, slug: str) -> Account:
        self._people += 1
        user = f"{slug}-{self._people}"
        return await self.court.open_account(user, slug, await self.world.connect(node, user, slug))

    async def _any_node(self) -> Node:
        node = next((node for node in self.world.nodes if node.up), self.world.nodes[0])
        if not node.up:
            await node.start()
        return node

    @rule(account=connections, node=_NODES)
    def reauthorize(self, account: Account, node: int) -> None:
        """The same person gives consent anew, whatever has become of the connection."""
        self._do(self._consented(account, self.world.nodes[node]))

    async def _consented(self, account: Account, node: Node) -> None:
        newest = self._newest(account)
        grant = await self.world.connect(node, newest.user, newest.slug)
        if newest.was == "disconnected":
            await self.court.open_account(newest.user, newest.slug, grant)
        else:
            newest.grant, newest.was = grant, "connected"

    @rule(account=connections, node=_NODES, min_ttl=st.sampled_from([0, 0, 1800]))
    def token(self, account: Account, node: int, min_ttl: int) -> None:
        """A caller asks."""
        self._do(self._asked(account, self.world.nodes[node], min_ttl=min_ttl))

    @rule(account=connections, node=_NODES)
    def refused_token(self, account: Account, node: int) -> None:
        """A caller asks, is refused with it at an API, and says so."""

        async def complain() -> None:
            said = await self._asked(account, self.world.nodes[node])
            if (token_id := getattr(said, "token_id", None)) is not None:
                await self._asked(account, self.world.nodes[node], rejected_token_id=token_id)

        self._do(complain())

    @rule(account=connections)
    def refresh_everywhere(self, account: Account) -> None:
        """The token ends, and callers of all nodes ask at once."""

        async def crowd() -> None:
            await self.world.clock.advance(HOUR)
            asking = [self._asked(account, node) for node in self.world.nodes for _ in range(3)]
            with self.court.at_most_one_refresh(self._newest(account)):
                for said in await asyncio.gather(*asking, return_exceptions=True):
                    if isinstance(said, BaseException) and not isinstance(said, Unavailable):
                        raise said

        self._do(crowd())

    async def _asked(self, account: Account, node: Node, **more: Any) -> object:
        account, asked_at = self._newest(account), self.world.clock.now()
        said = await self.world.token(node, account.user, account.slug, **more)
        self.court.told(account, said, asked_at=asked_at)
        return said

    def _newest(self, account: Account) -> Account:
        """Return the connection that the person has now, which may be another after a disconnect."""
        return [other for other in self.court.accounts if other.user == account.user][-1]

    # --- operators ----------------------------------------------------------------------------------------------------

    @rule(account=connections, node=_NODES)
    def disconnect(self, account: Account, node: int) -> None:
        self._do(self._disconnected(account, self.world.nodes[node]))

    async def _disconnected(self, account: Account, node: Node) -> None:
        newest = self._newest(account)
        if newest.was != "disconnected":
            await self.world.disconnect(node, newest.user, newest.slug)
            self.court.acknowledged(newest, "disconnected")

    @rule(account=connections, node=_NODES)
    def force_reauthorization(self, account: Account, node: int) -> None:
        async def force() -> None:
            newest = self._newest(account)
            if newest.was != "disconnected":
                await self.world.force(self.world.nodes[node], newest.id)
                self.court.acknowledged(newest, "forced")

        self._do(force())

    @rule(node=_NODES, crash=st.booleans())
    def rotate_keys(self, node: int, crash: bool) -> None:
        """A new key comes into use, and everything under it; the node may die on the way."""
        if crash:
            self._crash(node, "rewrap.mid_batch", lambda: self.world.rotate(self.world.nodes[node]))
        else:
            self._do(self.world.rotate(self.world.nodes[node]))

    # --- the provider -------------------------------------------------------------------------------------------------

    @rule(slug=_SLUGS, what=st.sampled_from(sorted(TROUBLES)))
    def provider_falls_ill(self, slug: str, what: str) -> None:
        trouble(self.world.provider, slug, **TROUBLES[what])

    @rule(slug=_SLUGS, form=st.sampled_from(KEEPS))
    def provider_keeps_refresh_tokens(self, slug: str, form: str) -> None:
        trouble(self.world.provider, slug, refresh_token=form)

    @rule(slug=_SLUGS)
    def provider_recovers(self, slug: str) -> None:
        trouble(self.world.provider, slug)

    @rule(account=connections, node=_NODES, what=st.sampled_from(sorted(TROUBLES)))
    def refresh_in_trouble(self, account: Account, node: int, what: str) -> None:
        """One refresh meets a trouble that is over afterwards."""
        self.world.provider.once(scope=self._newest(account).grant, **TROUBLES[what])
        self._run(self.world.clock.advance(HOUR))
        self._do(self._asked(account, self.world.nodes[node]))

    @rule(
        account=connections,
        node=_NODES,
        stall=st.sampled_from(["latency", "stall_before_headers"]),
        meanwhile=_MEANWHILE,
    )
    def lease_runs_out(self, account: Account, node: int, stall: str, meanwhile: tuple[str, ...]) -> None:
        """A node stands still over a refresh until its lease is over and others go on; then its answer comes."""

        async def stand_still() -> None:
            await self.world.clock.advance(HOUR)
            grant, provider = self._newest(account).grant, self.world.provider
            provider.tune(scope=grant, **{stall: STALL})
            before = len(provider.journal.refreshes(grant))
            holding = asyncio.ensure_future(self._asked_quietly(account, self.world.nodes[node]))
            with suppress(TimeoutError):
                await provider.until(lambda journal: len(journal.refreshes(grant)) > before, seconds=STALL / 2)
            provider.tune(scope=grant, **{stall: 0.0})
            await self.world.clock.advance(200)
            for name in meanwhile:
                await self._meanwhile(name, account, self.world.nodes[1 - node])
            await holding
            await self.world.nodes[node].rest(5)

        self._do(stand_still())

    async def _meanwhile(self, name: str, account: Account, node: Node) -> None:
        acts = {
            "chores": lambda: self._worked(node),
            "time": lambda: self.world.clock.advance(5),
            "token": lambda: self._asked(account, node),
            "disconnect": lambda: self._disconnected(account, node),
            "reauthorize": lambda: self._consented(account, node),
        }
        with suppress(Unavailable):
            await acts[name]()

    async def _asked_quietly(self, account: Account, node: Node) -> None:
        with suppress(Unavailable):
            await self._asked(account, node)

    @rule(account=connections)
    def person_revokes_at_the_provider(self, account: Account) -> None:
        self.world.provider.revoke_grant(account.grant)

    # --- time and nodes -----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from(MOMENTS))
    def time_passes(self, seconds: float) -> None:
        self._run(self.world.clock.advance(seconds))

    @rule(node=_NODES)
    def chores(self, node: int) -> None:
        self._do(self._worked(self.world.nodes[node]))

    async def _worked(self, node: Node) -> None:
        if node.up:
            await node.chores()

    @rule(account=connections, node=_NODES, point=st.sampled_from(DISTURBED_REFRESHES))
    def crash_in_refresh(self, account: Account, node: int, point: str) -> None:
        """A node dies at one step of a refresh."""
        self._run(self.world.clock.advance(HOUR))
        self._crash(node, point, lambda: self._asked(account, self.world.nodes[node]))

    @rule(account=connections, node=_NODES, point=st.sampled_from(["handout.before_audit", "handout.after_audit"]))
    def crash_in_hand_out(self, account: Account, node: int, point: str) -> None:
        self._crash(node, point, lambda: self._asked(account, self.world.nodes[node]))

    @rule(node=_NODES, point=st.sampled_from(DISTURBED_REFRESHES))
    def crash_in_chores(self, node: int, point: str) -> None:
        self._crash(node, point, lambda: self._worked(self.world.nodes[node]))

    def _crash(self, node: int, point: str, doing: Callable[[], Awaitable[object]]) -> None:
        async def crash() -> None:
            await self.world.crash_at(self.world.nodes[node], point, doing)
            if point in WINDOW:
                await self.court.crashed_in_window()

        if self.world.nodes[node].up:
            self._run(crash())

    @rule(node=_NODES)
    def restart(self, node: int) -> None:
        self._run(self._up(self.world.nodes[node]))

    async def _up(self, node: Node) -> None:
        if not node.up:
            await node.start()

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def invariants_hold(self) -> None:
        findings = self._run(self.court.findings())
        assert not findings, "\n".join(findings)

    def teardown(self) -> None:
        """Everything heals and some hours pass: whatever nothing excuses works, and the invariants hold."""
        try:
            self._run(self._recovery())
        finally:
            self._run(self._stack.aclose())

    async def _recovery(self) -> None:
        heal(self.world.provider)
        for node in self.world.nodes:
            await self._up(node)
        waiting = list(self.court.accounts)
        for _ in range(8):
            await self.world.clock.advance(HOUR)
            for node in self.world.nodes:
                await node.chores()
            waiting = [
                account for account in waiting if self._should_serve(account) and not await self._serves(account)
            ]
            if not waiting:
                break
        findings = await self.court.findings()
        lost = [f"{account.user} ({account.grant})" for account in waiting]
        assert not findings, "\n".join(findings)
        assert not lost, f"no token any more, though nothing excuses it: {', '.join(lost)}"

    async def _serves(self, account: Account) -> bool:
        try:
            said = await self._asked(account, self.world.nodes[0])
        except Unavailable:
            return False
        return hasattr(said, "access_token")

    def _should_serve(self, account: Account) -> bool:
        return account.was == "connected" and self.court.must_live(account)

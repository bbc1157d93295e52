"""The court of a story: invariants I1 to I9 of reliability.md, judged from the provider's journal, what callers were
told, and the rows an operator could read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import UUID

import asyncpg

from broker.connections.issuing import Inactive, IssuedToken
from tests.hostile import ClientAnswer, judge
from tests.hostile.journal import Entry
from tests.soak.providers import FOREVER, PERSONALITIES
from tests.soak.world import World

ON_ITS_WAY = 2.0  # seconds from the last byte of an answer to the version that is made of it, on a busy machine
# A whole refusal, after which the same refresh token may be sent again without more ado.
_REFUSALS = ("busy", "throttled", "bad_client", "server_error")
_ACCOUNTS = "SELECT id, version, state, state_reason, state_cause FROM connection"
_INTENTS = "SELECT connection_id, rt_fp, parent_id IS NOT NULL AS replay, outcome FROM refresh_intent"
_UNANSWERED = """SELECT rt_fp FROM refresh_intent i WHERE outcome IN ('pending', 'in_doubt')
    AND NOT EXISTS (SELECT FROM receipt p
                     WHERE (p.environment_id, p.intent_id) = (i.environment_id, i.id) AND p.complete)"""
_GIVEN_UP = "SELECT rt_fp FROM refresh_intent WHERE outcome = 'in_doubt' AND error = 'deadline'"
_HANDED_OUT = "SELECT connection_id, count(*) FROM audit_record WHERE action = 'token_issued' GROUP BY connection_id"


@dataclass
class Account:
    """One person's connection at one provider, as the story has it."""

    user: str
    slug: str
    grant: str
    id: UUID
    was: str = "connected"  # or forced, disconnected: what was last acknowledged
    version: int = 0


@dataclass
class Court:
    """Keep what was said, and find what violates an invariant."""

    world: World
    accounts: list[Account] = field(default_factory=list)
    answers: list[ClientAnswer] = field(default_factory=list)
    taken: Counter[UUID] = field(default_factory=Counter)  # tokens handed out, by connection
    in_window: set[str] = field(default_factory=set)  # refresh tokens that a crash took out of memory (1.1)
    complaints: list[str] = field(default_factory=list)

    # --- what was said ------------------------------------------------------------------------------------------------

    async def open_account(self, user: str, slug: str, grant: str) -> Account:
        """Note a connection that a person has just made."""
        found = await self.world.store.fetchval(
            "SELECT id FROM connection WHERE user_id = $1 AND state = 'connected'", user
        )
        account = Account(user, slug, grant, found)
        self.accounts.append(account)
        return account

    def told(self, account: Account, said: IssuedToken | Inactive, *, asked_at: float) -> None:
        """Note what a caller was told, and complain where that cannot be right."""
        if isinstance(said, IssuedToken):
            self.taken[account.id] += 1
            self._look_at(account, said.access_token.reveal())
            now = self.world.clock.now()
            self.answers.append(ClientAnswer(grant=account.grant, status="active", asked_at=asked_at, answered_at=now))
        elif said.error == "not_installed" and account.was != "disconnected":
            self.complaints.append(f"{account.user} is not_installed, and nobody disconnected")
        elif (
            said.error == "needs_reauthorization"
            and account.was == "connected"
            and self.must_live(account, since=asked_at - ON_ITS_WAY)
        ):
            self.complaints.append(
                f"I9: {account.user} is told to reauthorize, though a delivered refresh token is good"
            )

    def _look_at(self, account: Account, token: str) -> None:
        if self.world.provider.grant_of(token) != account.grant:
            self.complaints.append(f"{account.user} was handed a token of another consent")
        if account.was != "connected":
            self.complaints.append(f"I3: {account.user} was handed a token though {account.was}")
        killed = PERSONALITIES[account.slug].kills_access_token or not self.world.provider.is_live(account.grant)
        if not killed and not self.world.provider.accepts(token):
            self.complaints.append(f"{account.user} was handed an access token that has ended")

    def acknowledged(self, account: Account, what: str) -> None:
        """Note the end of a connection, from which on nothing is handed out."""
        account.was = what
        if what == "disconnected":
            now = self.world.clock.now()
            self.answers.append(ClientAnswer(grant=account.grant, status=what, asked_at=now, answered_at=now))

    @contextmanager
    def at_most_one_refresh(self, account: Account) -> Iterator[None]:
        """Complain where the provider delivers more than one new token meanwhile.

        But for R2: what it answers to a replay may be a token that has ended since, so that another is due at once.
        """
        before = len(self.world.provider.journal.refreshes(account.grant))
        yield
        made = self.world.provider.journal.refreshes(account.grant)[before:]
        delivered = sum(entry.outcome == "issued" and entry.delivered for entry in made)
        if delivered > 1 and account.slug != "r2":
            self.complaints.append(f"{account.user} was refreshed {delivered} times at once")

    async def crashed_in_window(self) -> None:
        """Excuse the answers that a crash took before they could be stored (reliability.md 1.1)."""
        with suppress(TimeoutError):
            await self.world.provider.settled(seconds=1)
        await self._excuse(_UNANSWERED)

    async def _excuse(self, query: str) -> None:
        """Excuse the loss of what the provider issued for the refresh tokens that *query* finds."""
        lost = {row["rt_fp"] for row in await self.world.store.fetch(query)}
        marks = {mark for mark, known in self.world.fingerprints().items() if known in lost}
        self.in_window |= {
            entry.issued_refresh_token
            for entry in self.world.provider.journal.refreshes()
            if entry.refresh_token in marks
        }

    # --- the verdict --------------------------------------------------------------------------------------------------

    async def findings(self) -> list[str]:
        """Return what violates an invariant so far; empty is an acquittal."""
        await self._excuse(_GIVEN_UP)  # its last bytes may have been in the kernel when the call's time was up
        rows = {row["id"]: row for row in await self.world.store.fetch(_ACCOUNTS)}
        intents = await self.world.store.fetch(_INTENTS)
        known = self.world.fingerprints()
        by_fingerprint = {fingerprint: mark for mark, fingerprint in known.items()}
        replays = [by_fingerprint.get(intent["rt_fp"], "") for intent in intents if intent["replay"]]
        found = list(self.complaints)
        late = {intent["connection_id"] for intent in intents if intent["outcome"] == "orphaned"}
        found += self._judged(replays, late)
        found += self._sendings(
            Counter(by_fingerprint.get(intent["rt_fp"], "") for intent in intents), Counter(replays)
        )
        for account in self.accounts:
            found += self._account(account, rows.get(account.id))
        found += await self._unaudited()
        return found

    def _judged(self, replays: list[str], late: set[UUID]) -> list[str]:
        """Ask the hostile server's judge for I2 to I4; I9 is judged here, where crashes are known.

        To the judge a delivered token that is not presented next is a lost one. One that came late is kept beside the
        current one, so for those connections the end of the story tells: whoever has lost a token cannot serve then.
        """
        excused = tuple(f"I4: {account.grant}:" for account in self.accounts if account.id in late)
        found = judge(self.world.provider.journal, replays, answers=self.answers)
        return [finding for finding in found if not finding.startswith(excused)]

    def _sendings(self, intents: Counter[str], replays: Counter[str]) -> Iterator[str]:
        """Nothing is sent without a durable intent, and nothing twice but as a replay that an intent names."""
        presented: dict[str, list[Entry]] = {}
        for entry in self.world.provider.journal.refreshes():
            presented.setdefault(entry.refresh_token, []).append(entry)
        for mark, entries in presented.items():
            again = sum(not _may_follow(before) for before in entries[:-1])
            token = f"{entries[0].grant}: token {entries[0].serial}"
            if len(entries) > intents[mark]:
                yield f"{token} was sent {len(entries)} times, with {intents[mark]} intents"
            if again > replays[mark]:
                yield f"I2: {token} was replayed {again} times, {replays[mark]} of them named by an intent"
            replayed = [entry for before, entry in pairwise(entries) if not _may_follow(before)]
            if any(self._successor_was_here(entry) for entry in replayed):
                yield f"I4: {token} was replayed, though its successor had been delivered"

    def _successor_was_here(self, replay: Entry) -> bool:
        return any(
            entry.refresh_token == replay.refresh_token
            and entry.issued_serial > replay.serial
            and entry.delivered
            and entry.issued_refresh_token not in self.in_window
            and (entry.finished_at or replay.at) < replay.at - ON_ITS_WAY
            for entry in self.world.provider.journal.refreshes(replay.grant)
        )

    def _account(self, account: Account, row: asyncpg.Record | None) -> Iterator[str]:
        if row is None:
            yield f"{account.user}: the connection is gone"
            return
        if row["version"] < account.version:
            yield f"{account.user}: the version went from {account.version} to {row['version']}"
        account.version = row["version"]
        if row["state"] == "needs_reauthorization" and not row["state_cause"]:
            yield f"I5: {account.user}: needs_reauthorization without a cause"
        if row["state"] != "connected" and account.was == "connected" and self.must_live(account):
            yield f"I9: {account.user}: {row['state']} ({row['state_reason']}) with a good refresh token"
        if (account.was, row["state"]) in (("disconnected", "connected"), ("forced", "connected")):
            yield f"I3: {account.user}: connected again after it was {account.was}"

    def must_live(self, account: Account, *, since: float | None = None) -> bool:
        """Say whether nothing excuses the loss of this connection: a refresh token is good, and was *since* then."""
        now = self.world.clock.now()
        return bool(self._good(account, now) & self._good(account, now if since is None else since))

    def _good(self, account: Account, at: float) -> set[str]:
        journal = self.world.provider.journal
        live = journal.live_refresh_tokens(account.grant, at=at)
        if account.slug in FOREVER:
            return live
        return live & journal.delivered_refresh_tokens(account.grant, at=at) - self.in_window

    async def _unaudited(self) -> list[str]:
        on_record = {row["connection_id"]: row["count"] for row in await self.world.store.fetch(_HANDED_OUT)}
        return [
            f"I6: {taken} tokens of {connection} left, {on_record.get(connection, 0)} are on record"
            for connection, taken in self.taken.items()
            if taken > on_record.get(connection, 0)
        ]


def _may_follow(before: Entry) -> bool:
    """Say whether the same refresh token may be sent again after this without being a replay."""
    keeps = before.outcome == "issued" and before.issued_refresh_token in ("", before.refresh_token)
    return before.delivered and (keeps or before.outcome in _REFUSALS)

"""Judge a run by the journal alone, or with the clients' log: findings on invariants I1, I2, I3, I4 and I9."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from .journal import Entry, Journal

_GIVEN_UP_ON_PURPOSE = frozenset({"operator_forced", "account_mismatch"})


@dataclass(frozen=True, kw_only=True)
class ClientAnswer:
    """What a client of the vault was told about a grant; times in epoch seconds of the server's clock.

    *status* is active, needs_reauthorization, disconnected (the acknowledgement of a disconnect) or unavailable.
    """

    grant: str
    status: str
    asked_at: float
    answered_at: float
    reason: str = ""


def judge(
    journal: Journal,
    allowed_replays: Iterable[str] = (),
    *,
    answers: Sequence[ClientAnswer] = (),
    killed_in_receipt_window: Container[str] = (),
) -> list[str]:
    """Return what violates an invariant, as sentences; an empty list is an acquittal.

    *allowed_replays* are fingerprints of refresh tokens whose replay an intent names, each good for one replay.
    *killed_in_receipt_window* are grants whose holder was killed with an answer in memory only: what the network
    delivered then, nobody can have kept.
    """
    allowed = Counter(allowed_replays)
    findings: list[str] = []
    for grant, requests in _token_requests_by_grant(journal).items():
        if grant not in killed_in_receipt_window:
            findings += _out_of_order(grant, requests, allowed)
    findings += _handed_out_after_disconnect(answers)
    findings += _given_up_though_live(
        journal, [answer for answer in answers if answer.grant not in killed_in_receipt_window]
    )
    return findings


def judge_hosts(*journals: Journal) -> list[str]:
    """I1: no server was shown a token, code or client secret that belongs to another."""
    findings = []
    for here, elsewhere in permutations(range(len(journals)), 2):
        foreign = _issued(journals[elsewhere])
        for entry in journals[here].entries:
            shown = {entry.refresh_token, entry.access_token, entry.token, entry.code}
            if shown & foreign:
                findings.append(f"I1: request {entry.number} of server {here} shows a secret of server {elsewhere}")
        secrets = _client_secrets(journals[here]) & _client_secrets(journals[elsewhere])
        if secrets and here < elsewhere:
            findings.append(f"I1: servers {here} and {elsewhere} were shown the same client secret")
    return findings


def _token_requests_by_grant(journal: Journal) -> dict[str, list[Entry]]:
    grouped: dict[str, list[Entry]] = defaultdict(list)
    for entry in journal.token_requests():
        if entry.grant:
            grouped[entry.grant].append(entry)
    return grouped


def _out_of_order(grant: str, requests: Sequence[Entry], allowed: Counter[str]) -> Iterator[str]:
    """I2, and I4 as far as a server can see it: a token that was delivered whole must be the one presented next."""
    newest_presented = 0
    for entry in (request for request in requests if request.serial):
        delivered = _newest_delivered(requests, before=entry.at)
        older, lost = entry.serial < newest_presented, entry.serial < delivered
        if (older or lost) and allowed[entry.refresh_token] > 0:
            allowed[entry.refresh_token] -= 1
        elif older:
            yield f"I2: {grant}: request {entry.number} presents token {entry.serial} after {newest_presented}"
        elif lost:
            yield f"I4: {grant}: request {entry.number} presents token {entry.serial}, with {delivered} delivered"
        newest_presented = max(newest_presented, entry.serial)


def _newest_delivered(requests: Sequence[Entry], *, before: float) -> int:
    return max((entry.issued_serial for entry in requests if entry.delivered and _ended(entry, before)), default=0)


def _ended(entry: Entry, before: float) -> bool:
    return entry.finished_at is not None and entry.finished_at < before


def _handed_out_after_disconnect(answers: Sequence[ClientAnswer]) -> Iterator[str]:
    """I3, judged by the start of the request."""
    for ended in (answer for answer in answers if answer.status == "disconnected"):
        for answer in answers:
            if answer.grant == ended.grant and answer.status == "active" and answer.asked_at > ended.answered_at:
                yield f"I3: {answer.grant}: a token was handed out {answer.asked_at - ended.answered_at:.3f} s too late"


def _given_up_though_live(journal: Journal, answers: Sequence[ClientAnswer]) -> Iterator[str]:
    """I9. An operator may give up a live grant, and a token of another account is no grant; nobody else may."""
    for answer in answers:
        if answer.status != "needs_reauthorization" or answer.reason in _GIVEN_UP_ON_PURPOSE:
            continue
        if journal.was_called_dead(answer.grant, before=answer.answered_at):
            continue
        received = journal.delivered_refresh_tokens(answer.grant, at=answer.asked_at)
        good = (
            journal.live_refresh_tokens(answer.grant, at=moment) for moment in (answer.asked_at, answer.answered_at)
        )
        if received.intersection(*good):  # all the time from question to answer
            yield f"I9: {answer.grant}: needs_reauthorization, though a delivered refresh token is good"


def _issued(journal: Journal) -> set[str]:
    marks: set[str] = set()
    for entry in journal.entries:
        marks |= {entry.issued_refresh_token, entry.issued_access_token}
        if entry.endpoint == "authorize":
            marks.add(entry.code)
    return marks - {""}


def _client_secrets(journal: Journal) -> set[str]:
    return {entry.client_secret for entry in journal.entries} - {""}

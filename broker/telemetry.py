"""Metrics of this process; labels come from closed sets, so that no id or token can become one."""

from __future__ import annotations

import msgspec
from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("penstock_http_requests_total", "Requests answered, by status.", ["status"])
TOKEN_SECONDS = Histogram(
    "penstock_token_seconds",
    "Time to answer a token request, refreshes included.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 25),
)
REFRESHES = Counter("penstock_refreshes_total", "Attempts to refresh, by what they came to.", ["outcome"])
RECEIPT_WINDOW = Histogram(
    "penstock_refresh_receipt_window_seconds",
    "From a provider's last byte to its answer being durable: what a kill -9 in between could lose.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10, 60),
)
HELD_ANSWERS = Gauge("penstock_held_answers", "Provider answers that are not in the database yet.", ["where"])
ALARMS = Counter("penstock_alarms_total", "Alarms raised; deploy/runbook.md says what to do.", ["alarm"])
LIMITS = Gauge("penstock_refresh_limit", "The limits the refresh engine keeps to, as configured.", ["name"])
SEALED = Gauge("penstock_engine_sealed", "1 while no refresh is sent before an operator confirms the database.")
CIRCUITS = Gauge("penstock_open_circuits", "Providers that are not asked at the moment, for they keep failing.")
QUEUED = Gauge("penstock_queued_refreshes", "Refreshes that wait for a free place at their provider.")
# Of the whole deployment, read from the database when asked for: every process gives the same.
WAITING = Gauge("penstock_waiting", "Work in the database that a worker has yet to do.", ["queue"])
OLDEST_REVOCATION = Gauge(
    "penstock_oldest_revocation_seconds", "Age of the oldest revocation that a provider has yet to be told of."
)

GRANTS_ENDING = Gauge(
    "penstock_grants_ending", "Grants that end for good within so many days unless people consent anew.", ["days"]
)


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for a worker."""

    revocations: int
    operations: int
    answers: int  # of providers, stored and not yet taken up
    oldest_revocation: float  # seconds; 0 when none waits

    def show(self) -> None:
        """Set the gauges."""
        WAITING.labels(queue="revocations").set(self.revocations)
        WAITING.labels(queue="operations").set(self.operations)
        WAITING.labels(queue="answers").set(self.answers)
        OLDEST_REVOCATION.set(self.oldest_revocation)


class GrantsEnding(msgspec.Struct, frozen=True, kw_only=True):
    """How many grants end within a day, a week and a month, each counted in the longer ones too."""

    day: int
    week: int
    month: int

    def show(self) -> None:
        """Set the gauges."""
        for days, count in ((1, self.day), (7, self.week), (30, self.month)):
            GRANTS_ENDING.labels(days=str(days)).set(count)

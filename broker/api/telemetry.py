"""Metrics of this process; labels come from closed sets, so that no id or token can become one."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

REQUESTS = Counter("penstock_http_requests_total", "Requests answered, by status.", ["status"])
TOKEN_SECONDS = Histogram(
    "penstock_token_seconds",
    "Time to answer a token request, refreshes included.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 25),
)

"""Alarms: what an operator has to look at. Each is a log line, a metric, and an entry of deploy/runbook.md."""

from __future__ import annotations

from time import monotonic
from typing import Any, Literal, get_args

from broker.log import log
from broker.telemetry import ALARMS

Alarm = Literal[
    "answer_held_in_memory",
    "answer_spooled",
    "answer_set_aside",
    "spool_unusable",
    "refresh_in_doubt",
    "provider_refuses_our_credentials",
    "provider_error_unknown",
    "provider_suspect",
    "provider_circuit_open",
    "engine_sealed",
    "grant_ends_soon",
    "clock_off",
]
ALL: tuple[Alarm, ...] = get_args(Alarm)


_PAGE_EVERY = 60.0  # seconds: a provider's trouble concerns thousands of connections, and calls somebody once
_paged: dict[tuple[str, ...], float] = {}


def alarm(name: Alarm, **fields: Any) -> None:
    """Raise an alarm; *fields* as in any log line, so nothing secret gets in.

    Each is counted and logged; of those of one kind, about one provider and error, one in a minute is critical.
    """
    ALARMS.labels(alarm=name).inc()
    kind, now = (name, str(fields.get("provider")), str(fields.get("error_code"))), monotonic()
    for known in [known for known, at in _paged.items() if at <= now - _PAGE_EVERY]:
        del _paged[known]
    if kind in _paged:
        log.error(name, **fields)
        return
    _paged[kind] = now
    log.critical(name, **fields)

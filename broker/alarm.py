"""Alarms: what an operator has to look at. Each is a log line, a metric, and an entry of deploy/runbook.md."""

from __future__ import annotations

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


def alarm(name: Alarm, **fields: Any) -> None:
    """Raise an alarm; *fields* as in any log line, so nothing secret gets in."""
    ALARMS.labels(alarm=name).inc()
    log.critical(name, **fields)

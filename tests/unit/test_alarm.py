"""Alarms call somebody once for one trouble, and count every time."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from broker import alarm as alarms
from broker.alarm import alarm
from broker.telemetry import ALARMS


@pytest.fixture(autouse=True)
def nobody_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms, "_paged", {})


def test_trouble_of_many_connections_calls_somebody_once() -> None:
    """A hundred refreshes in doubt at one provider: one critical line, and all of them in the log and the metric."""
    before = ALARMS.labels(alarm="refresh_in_doubt")._value.get()
    with capture_logs() as lines:
        for number in range(100):
            alarm("refresh_in_doubt", provider="acme", connection_id=str(number))

    assert [line["log_level"] for line in lines] == ["critical"] + ["error"] * 99
    assert ALARMS.labels(alarm="refresh_in_doubt")._value.get() == before + 100


def test_another_provider_or_error_is_another_trouble() -> None:
    """Each calls somebody, and so does the same one a minute later."""
    with capture_logs() as lines:
        alarm("provider_error_unknown", provider="acme", error_code="odd")
        alarm("provider_error_unknown", provider="acme", error_code="odder")
        alarm("provider_error_unknown", provider="other", error_code="odd")
        alarms._paged.update({kind: at - 61 for kind, at in alarms._paged.items()})
        alarm("provider_error_unknown", provider="acme", error_code="odd")

    assert [line["log_level"] for line in lines] == ["critical"] * 4
    assert len(alarms._paged) == 1, "what is over is forgotten"

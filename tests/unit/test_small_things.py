"""Secrets that cannot leak by accident, identifiers, and log lines that stay one line."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import sys
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import ids
from broker.log import WithoutValues, allow_listed, where
from broker.secret import Secret

CANARY = "CANARY_secret_0123456789"


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r:>40}".format, lambda secret: f"{secret}"])
def test_a_secret_never_shows_itself(show):
    """However it is printed, the value stays inside."""
    assert CANARY not in show(Secret(CANARY))


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy, hash, json.dumps, msgspec.json.encode])
def test_a_secret_refuses_to_be_carried_off(leak):
    """Serializing, copying or hashing it is an error, not a leak."""
    with pytest.raises(TypeError):
        leak(Secret(CANARY))


def test_secrets_are_compared_in_constant_time_or_not_at_all():
    """`==` is refused, so that nobody compares secrets in a way that tells how much of one is right."""
    with pytest.raises(TypeError):
        Secret(CANARY) == Secret(CANARY)  # noqa: B015  the refusal is what is tested
    assert Secret(CANARY).matches(Secret(CANARY))
    assert not Secret(CANARY).matches(Secret(CANARY + "x"))


def test_a_short_secret_does_not_show_its_last_four():
    """Four characters of a short secret would be most of it."""
    assert Secret(CANARY).last_four == "6789"
    assert Secret("short").last_four == ""


@given(st.uuids())
def test_an_identifier_survives_the_wire(value: uuid.UUID):
    """What is written is read back, under its own prefix and no other."""
    wire = ids.to_wire(ids.CONNECTION, value)

    assert ids.from_wire(ids.CONNECTION, wire) == value
    assert ids.from_wire(ids.INTEGRATION, wire) is None


@given(st.text())
def test_anything_else_is_no_identifier(text: str):
    """Arbitrary text is "not found", never an exception."""
    found = ids.from_wire(ids.CONNECTION, text)

    assert found is None or ids.to_wire(ids.CONNECTION, found) == text


def test_identifiers_grow_with_time():
    """Ids made later sort later, so that a list by id is a list by age."""
    made = [ids.new_uuid() for _ in range(5)]

    assert {value.version for value in made} == {7}
    assert [value.int >> 80 for value in made] == sorted(value.int >> 80 for value in made)


def test_a_log_line_keeps_known_fields_and_stays_one_line():
    """A field that nobody allowed is dropped and named; control characters cannot start a line of their own."""
    line = allow_listed(None, "info", {"event": "x", "provider": "a\nERROR forged\x1b[31m", "body": CANARY})

    assert line["provider"] == "a\\x0aERROR forged\\x1b[31m"
    assert line["dropped"] == ["body"]
    assert CANARY not in str(line)


def test_where_an_error_came_from_is_told_without_its_values():
    """The place of an exception is in the log; its text, which may hold a token, is not."""

    def fails(token: str) -> None:
        raise ValueError(token)

    with pytest.raises(ValueError, match=CANARY) as raised:
        fails(CANARY)

    assert "fails" in where(raised.value)
    assert CANARY not in where(raised.value)


def test_other_peoples_log_lines_name_an_exception_without_its_text(capsys: pytest.CaptureFixture[str]):
    """A driver's or a framework's traceback becomes one line: what kind of error, and where; never its text."""
    logger = logging.getLogger("somebody.else")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(WithoutValues("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        raise ValueError(CANARY)
    except ValueError:
        logger.exception("it broke")
    finally:
        logger.removeHandler(handler)
    shown = capsys.readouterr().out

    assert shown.startswith("ERROR it broke\nValueError at test_other_peoples")
    assert CANARY not in shown
    assert len(shown.splitlines()) == 2

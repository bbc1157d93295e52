"""A provider's answer, read strictly: its body as values, JSON pointers into it, and its words made safe to repeat.

A body may hold tokens. So nothing raised here carries any of it, neither in a message nor as a cause.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Final
from urllib.parse import parse_qsl

from broker.oauth.http import HttpResponse
from broker.oauth.model import Predicate, RequestFormat

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "text/plain", ""})
_MOST_FORM_FIELDS = 100
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_LONGEST_CODE, _LONGEST_DESCRIPTION, _LONGEST_TEXT = 100, 200, 255


class Unreadable(ValueError):
    """The body is not one that the provider's dialect allows. Nothing of it is in here."""


class _Missing(Enum):
    MISSING = "missing"


MISSING: Final = _Missing.MISSING  # what a pointer finds where nothing is; JSON's null is a value


# --- bodies -----------------------------------------------------------------------------------------------------------


def read_json(body: bytes) -> Any:
    """Decode JSON (RFC 8259) that means one thing only: UTF-8, no duplicate names; a byte order mark is forgiven.

    `NaN` and `Infinity` pass as floats, which `number` then refuses: a whole token set is not lost for a bad lifetime.
    Raises `Unreadable`, also for nesting that exhausts the decoder.
    """
    # The decoder's own errors keep the document, so `Unreadable` is raised outside of them and has no context.
    with suppress(ValueError, RecursionError):
        text = body.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique)
    raise Unreadable("the body is not JSON with unique names")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name stands twice")
    return members


def jwt_segment(token: str, index: int) -> Any:
    """Return the header (0) or the claims (1) of a JWT without looking at its signature; `MISSING` if it is none."""
    segments = token.split(".")
    with suppress(ValueError):
        if len(segments) == 3:
            return read_json(base64.urlsafe_b64decode(segments[index] + "=" * (-len(segments[index]) % 4)))
    return MISSING


def read_members(response: HttpResponse, formats: Iterable[RequestFormat] = ("json",)) -> Mapping[str, Any]:
    """Return the members of an answer: a JSON object, or form fields where *formats* allows them.

    Raises `Unreadable`. A form that ended with the connection may be cut inside a token without a trace, so it is not
    read either.
    """
    with suppress(Unreadable):
        members = read_json(response.body)
        if isinstance(members, dict):
            return members
    if "form" in formats and _media_type(response) in _FORM_TYPES and response.length_declared:
        return _read_form(response.body)
    raise Unreadable("the body is not an object of the expected format")


def _media_type(response: HttpResponse) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def _read_form(body: bytes) -> dict[str, str]:
    with suppress(ValueError):
        text = body.decode("ascii")
        return _unique(
            parse_qsl(
                text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_MOST_FORM_FIELDS
            )
        )
    raise Unreadable("the body is not form-encoded with unique names")


# --- places in a body -------------------------------------------------------------------------------------------------


def find(document: Any, pointer: str) -> Any:
    """Return what a JSON pointer (RFC 6901) finds, or `MISSING`."""
    found = document
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(name, MISSING)
        elif isinstance(found, Sequence) and not isinstance(found, str) and _INDEX.fullmatch(name):
            found = found[int(name)] if int(name) < len(found) else MISSING
        else:
            return MISSING
    return found


def holds(predicate: Predicate | None, document: Any) -> bool:
    """Return whether a body satisfies a descriptor's condition; without one it does."""
    if predicate is None:
        return True
    found = find(document, predicate.pointer)
    if predicate.absent:
        return found is MISSING
    # True == 1 in Python, and not in JSON.
    return type(found) is type(predicate.equals) and found == predicate.equals


def scalar(value: Any) -> str | None:
    """Return a string or an integer as text; None for null, "", a boolean, and anything with structure."""
    if isinstance(value, str):
        return value or None
    # str() refuses integers of thousands of digits, and no identifier has more than a few dozen.
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**40:
        return str(value)
    return None


def number(value: Any) -> float | None:
    """Return a number, or a string that is one, as a finite float; None otherwise."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?", value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        return float(value) if math.isfinite(float(value)) else None
    return None


# --- words that will be shown or logged -------------------------------------------------------------------------------


def error_code(value: Any) -> str | None:
    """Return a provider's error code fit for a log line: printable ASCII, at most 100 characters."""
    code = scalar(value)
    if code is None:
        return None
    return re.sub(r"[^ -~]", "?", code)[:_LONGEST_CODE]


def description(value: Any) -> str | None:
    """Return a provider's explanation with everything unprintable replaced, at most 200 characters."""
    return _printable(value, _LONGEST_DESCRIPTION)


def text_of(value: Any) -> str | None:
    """Return a name that a provider gives, with everything unprintable replaced, at most 255 characters."""
    return _printable(value, _LONGEST_TEXT)


def _printable(value: Any, longest: int) -> str | None:
    text = scalar(value)
    if text is None:
        return None
    return "".join(character if character.isprintable() else " " for character in text[:longest]).strip() or None

"""JSON documents built by pointer (RFC 6901), and values that a descriptor's patterns accept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from broker.errors import DescriptorError
from broker.oauth.model import MetadataSource, Predicate
from providers.emulator.people import Person


def put(document: Any, pointer: str, value: Any, *, replace: bool = True) -> None:
    """Put *value* where *pointer* points, making what is missing on the way; the key 0 makes an array of one.

    Without *replace* a value that stands there stays, and so does a null on the way: it says that there is none.
    """
    tokens = [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]
    for place, token in enumerate(tokens):
        last = place == len(tokens) - 1
        child: Any = value if last else ([] if tokens[place + 1] == "0" else {})
        if isinstance(document, list):
            if not document:
                document.append(child)
            document = document[0]
        elif isinstance(document, dict):
            if token not in document or (last and replace):
                document[token] = child
            document = document[token]
        else:
            return


def satisfy(document: dict[str, Any], predicate: Predicate | None) -> None:
    """Make a success of *document*, by the condition that tells one from an error."""
    if predicate is not None and not predicate.absent:
        put(document, predicate.pointer, predicate.equals)


def violate(document: dict[str, Any], predicate: Predicate | None) -> None:
    """Make an error of *document*, by the condition that tells one from a success."""
    if predicate is None:
        return
    if predicate.absent:
        put(document, predicate.pointer, True, replace=False)  # the error's code may stand there already
        return
    wrong: Mapping[type, object] = {bool: not predicate.equals, int: 1 if predicate.equals == 0 else 0}
    put(document, predicate.pointer, wrong.get(type(predicate.equals), "error"))


def fitting(name: str, source: MetadataSource, person: Person) -> str:
    """Return a value for `[metadata.<name>]` that its pattern or host list accepts, another one for each person.

    Raises `DescriptorError` where none of ours fits: the provider then needs a dialect of its own.
    """
    organization = person.organization.lower()
    if source.kind in {"host", "origin"}:
        rule = source.hosts[person.number % len(source.hosts)]
        host = organization + rule if rule.startswith(".") else rule
        return host if source.kind == "host" else f"https://{host}"
    number = str(person.number)
    candidates = (
        organization,
        number,
        f"{organization}-{number}",
        f"{organization[0].upper()}0{number}",
        f"0000{number}-0000-4000-8000-00000000{number}",
        f"0000{number}000040008000{number:0>12}",
    )
    for candidate in candidates:
        if source.pattern is None or re.fullmatch(source.pattern, candidate):
            return candidate
    raise DescriptorError(f"no emulated value fits the pattern of metadata.{name}")

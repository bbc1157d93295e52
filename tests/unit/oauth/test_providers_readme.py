"""providers/README.md says what the loader does: its examples are read by the code that it describes."""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import msgspec.inspect as inspection
import pytest

import providers
from broker.oauth.catalog import load_catalog
from broker.oauth.custom import CustomProvider
from broker.oauth.model import ProviderDescriptor
from broker.oauth.schema import (
    descriptor_type,
    dotted_keys,
    is_duration,
    item_table,
    named_table,
    own_table,
    parse_duration,
    read_table,
)

README = (Path(providers.__path__[0]) / "README.md").read_text(encoding="utf-8")
STEPS, _, REFERENCE = README.partition("## Every key")
KEYS = dict(dotted_keys())


def blocks(text: str) -> list[str]:
    return [textwrap.dedent(block) for block in re.findall(r"^ *```toml\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)]


def reference() -> dict[str, Any]:
    return tomllib.loads("\n".join(blocks(REFERENCE)))


def written(table: dict[str, Any], schema: inspection.StructType, path: str = "") -> Iterator[str]:
    """Yield every key that the reference shows, named as `dotted_keys` names it."""
    types = {field.encode_name: field.type for field in schema.fields}
    for key, value in table.items():
        yield f"{path}{key}"
        below, named = own_table(types[key]) or item_table(types[key]), named_table(types[key])
        if below is not None:
            for item in value if isinstance(value, list) else [value]:
                yield from written(item, below, f"{path}{key}.")
        elif named is not None:
            for item in value.values():
                yield from written(item, named, f"{path}{key}.<name>.")


async def test_the_five_step_example_loads_as_it_stands(tmp_path: Path) -> None:
    (example,) = blocks(STEPS)
    (tmp_path / "example.toml").write_text(example, encoding="utf-8")

    loaded = load_catalog(tmp_path).get("example")

    assert loaded is not None
    assert loaded.rotation.effective_class == "R5"


async def test_the_reference_shows_every_key_and_no_other() -> None:
    shown = {re.sub(r"\bpredicate\..*", "predicate", key) for key in written(reference(), descriptor_type())}
    known = {re.sub(r"\bpredicate\..*", "predicate", key) for key in KEYS}

    assert known - shown == set()
    assert shown - known == set()
    assert set(reference()["errors"]["predicate"]) == {"pointer", "equals", "absent"}


async def test_every_example_has_the_type_of_its_key() -> None:
    table = read_table(reference(), descriptor_type())

    msgspec.convert({**table, "slug": "example"}, ProviderDescriptor)


def comments() -> dict[str, str]:
    """Return what the reference says behind each key."""
    found, table = {}, ""
    for line in "\n".join(blocks(REFERENCE)).splitlines():
        if header := re.match(r"\[+(.+?)\]+(?:\s|$)", line):
            table = re.sub(r"^(config|metadata|scopes)\.(?:\"[^\"]+\"|\w+)", r"\1.<name>", header[1]) + "."
        elif pair := re.match(r"(\w+) = .*?(?:# (.*))?$", line):
            found[table + pair[1]] = pair[2] or ""
    return found


STATED = {key: match[1] for key, text in comments().items() if (match := re.search(r"\(default (.+)\)$", text))}


@pytest.mark.parametrize("key", STATED)
async def test_a_stated_default_is_the_default(key: str) -> None:
    field = KEYS[key]
    stated = tomllib.loads(f"value = {STATED[key]}")["value"]
    value = parse_duration(stated, key) if is_duration(field.type) else stated

    assert msgspec.json.encode(value) == msgspec.json.encode(field.default)


async def test_what_holds_for_an_absent_key_is_stated() -> None:
    """Empty lists and tables need no words; every other default is given, or what it follows from."""
    silent = []
    for key, text in comments().items():
        field = KEYS[key]
        is_empty = field.default in (None, (), msgspec.NODEFAULT)  # a table has a factory instead of a default
        stated = text.startswith("required") or (not field.required and re.search(r"\(default |absent: ", text))
        said = stated or (is_empty and not field.required)
        silent += [] if said else [key]

    assert silent == []


async def test_every_field_of_a_custom_provider_is_explained() -> None:
    section = README.partition("## Custom providers")[2]

    assert [name for name in CustomProvider.__struct_fields__ if f"`{name}`" not in section] == []

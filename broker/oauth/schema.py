"""Which keys a descriptor may have: `model.py` walked as a schema, and a file's tables read by it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, cast

import msgspec.inspect as inspection

from broker.errors import DescriptorError
from broker.oauth.model import NO_EXPIRY, ProviderDescriptor

Table = dict[str, Any]  # a TOML table, its values not yet typed

SET_BY_LOADER = frozenset({"slug"})  # of the struct, not of the file

_DURATION = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def descriptor_type() -> inspection.StructType:
    """Return the schema of a whole descriptor."""
    return cast(inspection.StructType, inspection.type_info(ProviderDescriptor))


def read_table(table: Mapping[str, Any], schema: inspection.StructType, *, path: str = "") -> Table:
    """Return *table* with its durations parsed. Raise `DescriptorError` naming a key that does not exist."""
    fields = {field.encode_name: field.type for field in schema.fields if field.name not in SET_BY_LOADER}
    read: Table = {}
    for key, value in table.items():
        if key not in fields:
            raise DescriptorError(f"{path}{key} is not a descriptor key{_nearest(key, fields)}")
        read[key] = _read_value(value, fields[key], f"{path}{key}")
    return read


def _nearest(key: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(sorted(known))}"


def _read_value(value: Any, schema: inspection.Type, path: str) -> Any:
    if is_duration(schema):
        return parse_duration(value, path)
    if (struct := item_table(schema)) is not None and isinstance(value, list):
        return [_read_value(item, struct, f"{path}[{index}]") for index, item in enumerate(value)]
    own, named = own_table(schema), named_table(schema)
    if (own or named) and not isinstance(value, Mapping):
        raise DescriptorError(f"{path} is a table")
    if own is not None:
        return read_table(value, own, path=f"{path}.")
    if named is not None:
        return {name: _read_value(item, named, f"{path}.{name}") for name, item in value.items()}
    return value


def parse_duration(text: object, path: str) -> timedelta:
    """Read `"30m"`, `"8h"`, `"60d"`; `""` is `NO_EXPIRY`: the provider states that there is none."""
    if text == "":
        return NO_EXPIRY
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise DescriptorError(f'{path} is not a duration such as "90s", "30m", "8h" or "60d"')
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


# --- shapes of a key ----------------------------------------------------------------------------------------------


def _members(schema: inspection.Type) -> tuple[inspection.Type, ...]:
    return schema.types if isinstance(schema, inspection.UnionType) else (schema,)


def is_duration(schema: inspection.Type) -> bool:
    """Return whether a key holds a duration."""
    return any(isinstance(member, inspection.TimeDeltaType) for member in _members(schema))


def own_table(schema: inspection.Type) -> inspection.StructType | None:
    """Return the schema of a key that is a table: `[quirks]`."""
    return next((member for member in _members(schema) if isinstance(member, inspection.StructType)), None)


def named_table(schema: inspection.Type) -> inspection.StructType | None:
    """Return the schema of the tables below a key whose names are the provider's: `[config.<field>]`."""
    values = [member.value_type for member in _members(schema) if isinstance(member, inspection.DictType)]
    return own_table(values[0]) if values else None


def item_table(schema: inspection.Type) -> inspection.StructType | None:
    """Return the schema of an array of tables: `[[errors.match]]`."""
    items = [member.item_type for member in _members(schema) if isinstance(member, inspection.VarTupleType)]
    return own_table(items[0]) if items else None


def dotted_keys(schema: inspection.StructType | None = None, path: str = "") -> Iterator[tuple[str, inspection.Field]]:
    """Yield every key as it is written, with its field: `quirks.scope_separator`, `config.<name>.pattern`."""
    for field in (schema or descriptor_type()).fields:
        if field.name in SET_BY_LOADER:
            continue
        key = f"{path}{field.encode_name}"
        yield key, field
        below = own_table(field.type) or item_table(field.type)
        if below is not None:
            yield from dotted_keys(below, f"{key}.")
        elif (named := named_table(field.type)) is not None:
            yield from dotted_keys(named, f"{key}.<name>.")

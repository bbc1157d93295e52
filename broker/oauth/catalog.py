"""The catalog: `providers/*.toml` read, inherited, completed and checked, so that the rest finds plain values."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from broker.errors import DescriptorError
from broker.oauth.checks import problems
from broker.oauth.model import ProviderDescriptor, Rotation
from broker.oauth.schema import Table, descriptor_type, read_table

RESERVED_SLUGS = frozenset({"finish"})  # a path of its own beside the integrations' redirect URIs
_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def is_slug(text: str) -> bool:
    """Return whether a provider may have this name: kebab-case, at most 63 characters, not a reserved word."""
    return _SLUG.fullmatch(text) is not None and text not in RESERVED_SLUGS


class Catalog:
    """The providers this deployment knows, by slug."""

    def __init__(self, descriptors: Mapping[str, ProviderDescriptor]) -> None:
        self._descriptors = dict(sorted(descriptors.items()))

    @property
    def slugs(self) -> tuple[str, ...]:
        return tuple(self._descriptors)

    def get(self, slug: str) -> ProviderDescriptor | None:
        return self._descriptors.get(slug)

    def __iter__(self) -> Iterator[ProviderDescriptor]:
        return iter(self._descriptors.values())

    def __len__(self) -> int:
        return len(self._descriptors)


def load_catalog(extra: Path | None = None) -> Catalog:
    """Load our descriptors, and the operator's from the directory *extra* (`PENSTOCK_PROVIDERS_DIR`).

    Raises `DescriptorError` naming the file and the key; nothing is loaded then.
    """
    tables = _read_directory(files("providers"))
    if extra is not None:
        if not extra.is_dir():
            raise DescriptorError(f"{extra} is not a directory of descriptors")
        theirs = _read_directory(extra)
        shadowed = sorted(tables.keys() & theirs.keys())
        if shadowed:
            raise DescriptorError(f"{shadowed[0]}.toml would shadow the descriptor of that name; give it another name")
        tables |= theirs
    return Catalog({slug: _descriptor(slug, tables) for slug in tables})


def _read_directory(directory: Traversable) -> dict[str, Table]:
    return {
        entry.name.removesuffix(".toml"): _read_file(entry)
        for entry in directory.iterdir()
        if entry.name.endswith(".toml")
    }


def _read_file(entry: Traversable) -> Table:
    slug = entry.name.removesuffix(".toml")
    if not is_slug(slug):
        raise DescriptorError(f"{entry.name}: the file's name is the slug: kebab-case, and not a reserved word")
    try:
        text = entry.read_text(encoding="utf-8")
        if not text.startswith("# https://"):
            raise DescriptorError("the first line is a comment with the URL of the provider's documentation")
        return _read_text(text)
    except (DescriptorError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DescriptorError(f"{entry.name}: {error}") from error


def _read_text(text: str) -> Table:
    table = tomllib.loads(text)
    parent = table.pop("extends", None)
    if not isinstance(parent, str | None):
        raise DescriptorError("extends names one descriptor")
    return read_table(table, descriptor_type()) | ({"extends": parent} if parent else {})


def _descriptor(slug: str, tables: Mapping[str, Table]) -> ProviderDescriptor:
    try:
        table = _completed(_inherited(slug, tables))
        descriptor = msgspec.convert({**table, "slug": slug}, ProviderDescriptor)
        found = list(problems(descriptor))
    except (DescriptorError, msgspec.ValidationError) as error:
        raise DescriptorError(f"{slug}.toml: {error}") from error
    if found:
        raise DescriptorError(f"{slug}.toml: " + "; ".join(found))
    return descriptor


# --- inheritance --------------------------------------------------------------------------------------------------


def _inherited(slug: str, tables: Mapping[str, Table]) -> Table:
    table = dict(tables[slug])
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if parent not in tables:
        raise DescriptorError(f"extends names {parent!r}, which is not a descriptor")
    if "extends" in tables[parent]:
        raise DescriptorError(f"extends names {parent!r}, which extends another itself; one level is allowed")
    return _merged(tables[parent], table)


def _merged(base: Table, own: Table) -> Table:
    """Lay *own* over *base*, table by table and key by key; an inherited key set to "", [] or {} is removed."""
    merged = dict(base)
    for key, value in own.items():
        if key in base and value in ("", [], {}):
            del merged[key]
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merged(base[key], value)
        else:
            merged[key] = value
    return merged


# --- defaults that depend on another key --------------------------------------------------------------------------


def _completed(table: Table) -> Table:
    """Fill in what follows from another key, so that a descriptor holds plain values (providers/README.md)."""
    quirks = _subtable(table, "quirks")
    if "scope_separator" in quirks:
        quirks.setdefault("granted_scope_separator", quirks["scope_separator"])
    if "token_request_format" in quirks:
        quirks.setdefault("refresh_request_format", quirks["token_request_format"])
    account, revocation = _subtable(table, "account"), _subtable(table, "revocation")
    account.setdefault("source", "userinfo" if "userinfo_endpoint" in table else "none")
    revocation.setdefault("style", "rfc7009" if "revocation_endpoint" in table else "none")
    return {
        **table,
        "quirks": quirks,
        "account": account,
        "revocation": revocation,
        "rotation": _completed_rotation(_subtable(table, "rotation")),
        "api": _completed_api(_subtable(table, "api")),
        "config": {name: _completed_field(name, field) for name, field in _subtable(table, "config").items()},
    }


def _subtable(table: Table, key: str) -> Table:
    return dict(table.get(key, {}))


def _completed_rotation(rotation: Table) -> Table:
    spends_at_once = msgspec.convert(rotation, Rotation).effective_class in {"R4", "R5"}
    return {
        "kills_old_access_token": spends_at_once,
        "server_error": "in_doubt" if spends_at_once else "retry",
        **rotation,
    }


def _completed_api(api: Table) -> Table:
    host = urlsplit(api.get("base_url", "")).hostname
    return {"allowed_hosts": [host], **api} if host and "{" not in host else api


def _completed_field(name: str, field: Table) -> Table:
    enum = field.get("enum")
    labels = {"enum": {value: value for value in enum}} if isinstance(enum, list) else {}
    return {"label": name, **field, **labels}

"""A provider of keys that none of our descriptors uses: each test writes the file of its own."""

from __future__ import annotations

from pathlib import Path

from broker.oauth.catalog import Catalog, load_catalog
from providers.emulator import Knobs
from tests.unit.emulator.emulated import Application

HEAD = """# https://odd.example/docs
display_name = "Odd"
authorization_endpoint = "https://odd.example/authorize"
token_endpoint = "https://odd.example/token"
token_endpoint_auth_method = "client_secret_post"
"""
DOCS = """
[docs]
setup_url = "https://odd.example/apps"
sources = ["https://odd.example/docs"]
verified_at = 2026-11-20
"""


def catalog_of(directory: Path, text: str, head: str = HEAD) -> Catalog:
    (directory / "odd.toml").write_text(head + text + DOCS)
    return load_catalog(directory)


def odd(directory: Path, text: str, *, head: str = HEAD, knobs: Knobs | None = None) -> Application:
    return Application("odd", catalog=catalog_of(directory, text, head), knobs=knobs)

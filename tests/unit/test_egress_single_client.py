"""Everything leaves through `broker.outbound`: no other file imports an HTTP client."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = {
    "httpx",
    "httpx2",
    "httpcore",
    "aiohttp",
    "requests",
    "urllib3",
    "urllib.request",
    "http.client",
    "websockets",
}


def imported(source: str) -> Iterator[str]:
    """Yield the modules that *source* imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def clients_in(source: str) -> set[str]:
    return {client for name in imported(source) for client in CLIENTS if f"{name}.".startswith(f"{client}.")}


def test_no_other_file_imports_an_http_client() -> None:
    outbound = ROOT / "broker" / "outbound"
    files = [path for tree in ("broker", "providers") for path in (ROOT / tree).rglob("*.py")]
    offenders = {
        str(path.relative_to(ROOT)): found
        for path in files
        if not path.is_relative_to(outbound) and (found := clients_in(path.read_text()))
    }

    assert offenders == {}
    assert any(clients_in(path.read_text()) for path in outbound.glob("*.py"))


@pytest.mark.parametrize(
    "source",
    [
        "import httpx",
        "def f():\n    from urllib import request",
        "from http.client import HTTPSConnection",
        "import urllib3.util",
    ],
)
def test_an_import_anywhere_in_a_file_is_found(source: str) -> None:
    assert clients_in(source)


@pytest.mark.parametrize(
    "source", ["from urllib.parse import urlsplit", "from http import HTTPStatus", "import http.cookies"]
)
def test_values_of_the_standard_library_are_no_clients(source: str) -> None:
    assert not clients_in(source)

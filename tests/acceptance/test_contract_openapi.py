"""The OpenAPI document: complete, true to the server, and without anything that looks like a secret."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from litestar.routes import HTTPRoute

from broker.app import litestar
from tests.acceptance.test_contract_operations import NOT_YET, SERVED
from tests.acceptance.wire import refused
from tests.rig import Backend, Penstock

BROWSER_PAGES = ("authorize-redirect", "/callback", "/pipes/", "/assets/")


@pytest.fixture(scope="module")
async def document(penstock: Penstock) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=penstock.url) as anybody:
        answer = await anybody.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    return dict(json.loads(answer.content))


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(m.upper(), path, found) for path, methods in document["paths"].items() for m, found in methods.items()]


def matches(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path) is not None


async def test_document_lists_every_operation_of_the_index(document: dict[str, Any]):
    """What is served is described, the token route included, and what is not served is not promised."""
    known = [(method, path) for method, path, _ in operations(document)]
    for method, path, _, _ in SERVED:
        assert any(method == m and matches(template, path) for m, template in known), (method, path)
    for method, path in NOT_YET:
        literal = [t for m, t in known if m == method and matches(t, path) and "{slug}" not in t.rpartition("/")[2]]
        assert not literal, (method, path)
    assert document["openapi"].startswith("3.1")


async def test_only_pages_metrics_and_the_document_are_left_out(document: dict[str, Any]):
    """Whatever else the application routes is in the document, with every method it takes."""
    left_out = set()
    for route in litestar().routes:
        assert isinstance(route, HTTPRoute)
        described = document["paths"].get(re.sub(r":str\}", "}", route.path), {})
        left_out |= {route.path for method in route.methods - {"OPTIONS"} if method.lower() not in described}

    others = {path for path in left_out if not any(page in path for page in BROWSER_PAGES)}
    assert others == {"/metrics", "/openapi.json"}


async def test_every_reference_leads_somewhere(document: dict[str, Any]):
    """A generator of clients can load it: references resolve, operation ids are unique, parameters are declared."""
    references = set(re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        place: Any = document
        for step in reference.split("/"):
            place = place[step]
    names = [found["operationId"] for _, _, found in operations(document)]
    assert len(names) == len(set(names))
    for _, path, found in operations(document):
        declared = {p["name"] for p in found["parameters"] if p["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path))
        assert found["summary"]
        assert found["responses"]["default"] == {"$ref": "#/components/responses/Problem"}


async def test_documented_bodies_are_the_ones_that_are_checked(document: dict[str, Any], backend: Backend):
    """Every POST and PUT has a body in the document, and the server refuses what that body does not have."""
    for method, path, found in operations(document):
        if method not in ("POST", "PUT"):
            continue
        schema = found["requestBody"]["content"]["application/json"]["schema"]
        shape = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        assert shape["additionalProperties"] is False
        address = re.sub(r"\{\w+\}", "acme", path)
        refused(await backend.call(method, address, {"no_such_field": 1}), 400, "unknown_field")
        for name in shape["properties"]:
            answer = await backend.call(method, address, {name: [[[]]]})
            assert answer.json()["code"] != "unknown_field", (method, path, name)


async def test_documented_queries_are_the_ones_that_are_checked(document: dict[str, Any], backend: Backend):
    """A parameter in the document is known to the server, and any other is refused."""
    for method, path, found in operations(document):
        address = re.sub(r"\{\w+\}", "acme", path)
        known = [p["name"] for p in found["parameters"] if p["in"] == "query"]
        for name in known:
            answer = await backend.call(method, f"{address}?{name}=%00")
            assert answer.json().get("code") != "unknown_field", (method, path, name)
        if known:
            refused(await backend.call(method, f"{address}?no_such_parameter=1"), 400, "unknown_field")


async def test_document_shows_no_secret(document: dict[str, Any], penstock: Penstock):
    """No example values at all; what is secret is write-only, and answers never have it but for the token itself."""
    text = json.dumps(document)
    assert penstock.api_key not in text
    assert not re.search(r"(sk|gho|ghp|xox[bp]|ya29)[_.-][A-Za-z0-9]{6}", text)
    assert '"example' not in text
    schemas = document["components"]["schemas"]
    secrets = {"CredentialsBody": "client_secret", "ApiKeyBody": "secret", "ImportRequest": "refresh_token"}
    for shape, field in secrets.items():
        assert "writeOnly" in json.dumps(schemas[shape]["properties"][field])
    holders = [name for name, shape in schemas.items() if "refresh_token" in shape.get("properties", {})]
    assert all(name.endswith("Request") for name in holders)

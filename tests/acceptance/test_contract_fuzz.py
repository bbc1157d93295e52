"""Random nonsense over every route of the OpenAPI document: always an answer of the contract, never a 5xx."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest

from tests.acceptance.wire import check_error, rows_of
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock, running_penstock

SEED, ROUNDS = 20261120, 60
PLAUSIBLE = {
    "slug": ["acme", "acme", "acme", "github"],
    "provider": ["acme", "github", "slack"],
    "user_id": ["ada", "bob"],
    "organization_id": ["org"],
    "access_token": ["at"],
    "refresh_token": ["rt"],
    "expires_at": ["2026-01-15T12:00:00.000Z", "2999-01-15T12:00:00.000Z"],
    "idle_since": ["2026-01-15T12:00:00.000Z"],
    "code_challenge": ["A" * 43],
    "code_verifier": ["v" * 43],
    "return_to": ["http://127.0.0.1:7777/connected"],
    "authorization_url": ["https://a.example/authorize"],
    "token_url": ["https://a.example/token"],
}
# fmt: off
ODD = [
    "", " ", "\0", "a\0b", "\n", "é", "\U0001f511", "\uffff", "a/b", "../..", "%00", "%", "null", "-1", "${x}",
    "{{7*7}}", "<script>", "'; DROP TABLE connection; --", "x" * 256, "x" * 600, "9" * 5000, "audit_7",
    "data_installation_01M7XGC775FKZVZD21QC59Y0EQ",
    "data_integration_01M7XGC775FKZVZD21QC59Y0EQ", "op_01M7XGC775FKZVZD21QC59Y0EQ", "finish", "organization",
    0, -1, 3601, 2**31, 2**63, 2**64, 0.5, 1e308, True, None, [], {}, [[[[]]]], {"a": {"\0": None}},
]
# fmt: on
ODD_TIMES = ["2026-01-15", "2026-01-15T12:00:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]
RAW = (
    b"",
    b"{",
    b"[" * 5000,
    b"\xff\xfe",
    b"null",
    b'{"user_id": "\\ud800"}',
    b"7" * 60_000,
    b'{"user_id":"' + b"x" * 70_000,
)


@pytest.fixture(scope="module")
async def penstock(
    database_dsn: str, provider: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Penstock]:
    """No worker: what it writes by itself would be counted as a request's."""
    home = tmp_path_factory.mktemp("penstock")
    allow = f"127.0.0.1:{provider.port}"
    async with running_penstock(database_dsn, home, worker=False, PENSTOCK_OUTBOUND_ALLOW=allow) as server:
        yield server


class Nonsense:
    """Requests that are nearly right, by the document, with more or fewer flaws; the same ones for one seed."""

    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self._schemas = document["components"]["schemas"]
        self._random, self._flaws = random.Random(seed), 0.0

    def request(self, method: str, path: str, operation: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return a URL and the rest of a request."""
        self._flaws = self._random.choice((0.0, 0.1, 0.3))
        query = []
        for parameter in operation["parameters"]:
            name, value = parameter["name"], str(self._like(parameter["name"], parameter["schema"]))
            if parameter["in"] == "path":
                path = path.replace(f"{{{name}}}", quote(value or "x", safe=""))
            elif self._random.random() < 0.3:
                query.append((name, value))
        query += [("nonsense", "x")] * self._flawed() + query[:1] * self._flawed()
        key = self._random.choice(("k", "k" * 300, ""))
        options: dict[str, Any] = {"headers": {"Idempotency-Key": key} if self._random.random() < 0.1 else {}}
        if method != "get":
            options["content"] = self._body(operation)
        return f"{path}?{urlencode(query)}" if query else path, options

    def _flawed(self) -> bool:
        return self._random.random() < self._flaws

    def _body(self, operation: dict[str, Any]) -> bytes:
        if self._flaws > 0.1 and self._random.random() < 0.1:
            return self._random.choice(RAW)
        content = operation.get("requestBody", {}).get("content", {"application/json": {"schema": {"type": "object"}}})
        return json.dumps(self._like("", content["application/json"]["schema"])).encode()

    def _like(self, name: str, schema: dict[str, Any]) -> Any:
        """Return something of the outline of *schema*, but for flaws."""
        if "$ref" in schema:
            return self._like(name, self._schemas[schema["$ref"].rpartition("/")[2]])
        if "anyOf" in schema:
            return self._like(name, self._random.choice(schema["anyOf"]))
        if self._flawed():
            return self._random.choice(ODD_TIMES if schema.get("format") == "date-time" else ODD)
        if "enum" in schema:
            return self._random.choice(schema["enum"])
        match schema.get("type"):
            case "object":
                return self._object(schema)
            case "array":
                return [self._like(name, schema["items"]) for _ in range(self._random.randrange(3))]
            case "string":
                return self._random.choice(PLAUSIBLE.get(name, ["a"]))
            case kind:
                return {"integer": 7, "boolean": self._random.random() < 0.5}.get(str(kind))

    def _object(self, schema: dict[str, Any]) -> dict[str, Any]:
        known, needed = schema.get("properties", {}), schema.get("required", ())
        chosen = [name for name in known if name in needed or self._random.random() < 0.4]
        made = {name: self._like(name, known[name]) for name in chosen}
        return {**made, str(self._random.choice(ODD)): 1} if self._flawed() else made


async def restore(backend: Backend) -> None:
    """See that there is something to hit: nonsense deletes as well, and redefines what both roots share."""
    roots = {"user": "/data-integrations/acme", "organization": "/data-integrations/acme/organization"}
    if all([(await backend.http.get(root)).status_code == 200 for root in roots.values()]):
        return
    for root in roots.values():
        await backend.http.delete(root)
    for ownership in roots:
        await backend.add_provider(ownership=ownership)


async def test_nonsense_is_refused_and_stores_nothing(backend: Backend, penstock: Penstock):
    """No request brings the server down; a refused one is JSON with a code, and leaves no row."""
    document = (await backend.http.get("/openapi.json")).json()
    operations = [(path, *found) for path, methods in document["paths"].items() for found in methods.items()]
    nonsense, statuses = Nonsense(document, SEED), Counter[int]()
    async with rows_of(penstock) as rows:
        for number, (path, method, operation) in enumerate(operations * ROUNDS):
            if number % len(operations) == 0:
                await restore(backend)
                before = await rows.count()
            url, options = nonsense.request(method, path, operation)
            answer = await backend.http.request(method, url, **options)
            after = await rows.count()
            statuses[answer.status_code] += 1
            if answer.status_code >= 400:
                told = f"{method} {url} {options}: {answer.text}"
                assert answer.status_code < 500, told
                check_error(answer)
                assert after == before, told
            before = after

    assert statuses.keys() >= {200, 201, 204, 400, 404, 409, 413, 422}, statuses


async def test_headers_of_any_bytes_are_survived(backend: Backend):
    """What a proxy or a fuzzer puts into headers never matters more than a 401 does."""
    odd = [b"\xff\xfe", b"Bearer", b"Bearer \xff", b"Basic eDp5", b"bearer " + b"x" * 4000, b"Bearer a b", b","]
    for value in odd:
        for method, path in (("POST", "/data-integrations/acme/token"), ("GET", "/data-integrations")):
            headers = httpx.Headers([(b"authorization", value), (b"user-agent", b"\xff"), (b"cookie", b"\xfe")])
            answer = await backend.http.request(method, path, headers=headers)
            assert answer.status_code == 401, (value, answer.text)
            check_error(answer)

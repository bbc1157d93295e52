"""Lists: the envelope, cursors forwards and backwards, every order, and what an owner's list leaves out (1.4, 7)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.wire import refused
from tests.rig import Backend

COUNT = 7


class Paged:
    """One paged list of seven entries that nobody else adds to, oldest first in `ids`."""

    def __init__(self, backend: Backend, path: str, ids: list[str], query: dict[str, str]) -> None:
        self.backend, self.path, self.ids, self.query = backend, path, ids, query

    async def page(self, **query: Any) -> tuple[list[str], str | None, str | None]:
        """Return the ids of a page, and its cursors."""
        answer = await self.backend.call("GET", self.path, params={**self.query, **query})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body.keys() == {"object", "data", "list_metadata"}
        assert (body["object"], body["list_metadata"].keys()) == ("list", {"before", "after"})
        return [row["id"] for row in body["data"]], body["list_metadata"]["before"], body["list_metadata"]["after"]

    async def walk(self, cursor: str, **query: Any) -> list[list[str]]:
        """Follow one of the two cursors until it is null; return the pages."""
        ids, before, after = await self.page(**query)
        pages = [ids]
        while (position := before if cursor == "before" else after) is not None:
            ids, before, after = await self.page(**{**query, cursor: position})
            pages.append(ids)
            assert len(pages) <= COUNT + 1, "the walk does not end"
        return pages


@pytest.fixture(scope="module")
async def ready(backend: Backend) -> Backend:
    """Seven organization-owned integrations, and seven accounts of one user."""
    definition = {"name": "X", "authorization_url": "https://x.example.com/a", "token_url": "https://x.example.com/t"}
    credentials = {"type": "custom", "client_id": "c", "client_secret": "s" * 16}
    for number in range(COUNT):
        body = {"provider": f"list-{number}", "ownership": "organization", "credentials": credentials}
        answer = await backend.call("POST", "/data-integrations", {**body, "custom_provider": definition})
        assert answer.status_code == 201, answer.text
        path = f"/user_management/users/lister/connected_accounts/acme?organization_id=org-{number}"
        assert (await backend.call("POST", path, {"access_token": "at"})).status_code == 201
    return backend


@pytest.fixture(params=["integrations", "connections"])
async def paged(ready: Backend, request: pytest.FixtureRequest) -> Paged:
    if request.param == "integrations":
        path, query = "/data-integrations", {"ownership": "organization"}
    else:
        path, query = "/admin/connections", {"user_id": "lister"}
    answer = await ready.call("GET", path, params={**query, "limit": "100", "order": "asc"})
    return Paged(ready, path, [row["id"] for row in answer.json()["data"]], query)


async def test_order_of_creation_and_its_reverse(paged: Paged):
    """asc is oldest first; desc, the default, newest first; a whole list has no cursor."""
    assert len(paged.ids) == COUNT
    assert await paged.page(limit=100, order="asc") == (paged.ids, None, None)
    assert await paged.page(limit=100) == (paged.ids[::-1], None, None)
    assert await paged.page(limit=100, order="desc") == (paged.ids[::-1], None, None)
    assert await paged.page(limit=100, order="normal") == (paged.ids[::-1], None, None)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_after_walks_every_entry_once(paged: Paged, order: str, limit: int):
    """Both SDKs walk by `after` until it is null: no entry twice, none left out, no empty last page."""
    pages = await paged.walk("after", order=order, limit=limit)

    assert [entry for page in pages for entry in page] == (paged.ids if order == "asc" else paged.ids[::-1])
    assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    assert 0 < len(pages[-1]) <= limit


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_before_walks_the_same_way_back(paged: Paged, order: str):
    """From the last page `before` leads to the first, each page in the order of the list."""
    forward = await paged.walk("after", order=order, limit=2)
    ids, before, after = await paged.page(order=order, limit=2, before=forward[-1][0])
    assert (ids, after) == (forward[-2], forward[-2][-1])
    ids, before, _ = await paged.page(order=order, limit=2, before=before)
    ids, before, _ = await paged.page(order=order, limit=2, before=before)
    assert (ids, before) == (forward[0], None)


async def test_normal_order_turns_the_cursors_round(paged: Paged):
    """order=normal: newest first, `before` fetches older entries and `after` newer ones."""
    older = await paged.walk("before", order="normal", limit=3)
    assert [entry for page in older for entry in page] == paged.ids[::-1]

    newest, _, after = await paged.page(order="normal", limit=3)
    assert after is None
    second, _, after = await paged.page(order="normal", limit=3, before=newest[-1])
    back, _, after = await paged.page(order="normal", limit=3, after=after)
    assert (second, back, after) == (older[1], newest, None)


async def test_limit_is_ten_unless_asked(ready: Backend):
    """The default page has ten entries; a hundred is the most."""
    for number in range(5):
        path = f"/user_management/users/lister/connected_accounts/acme?organization_id=more-{number}"
        await ready.call("POST", path, {"access_token": "at"})
    body = (await ready.call("GET", "/admin/connections", params={"user_id": "lister"})).json()
    assert len(body["data"]) == 10
    assert body["list_metadata"]["after"] == body["data"][-1]["id"]


async def test_audit_list_pages_alike(ready: Backend):
    """Audit records have cursors of their own kind, and walk by them in the same way."""
    first = (await ready.call("GET", "/admin/audit", params={"limit": 3})).json()
    second = (
        await ready.call("GET", "/admin/audit", params={"limit": 3, "after": first["list_metadata"]["after"]})
    ).json()
    back = await ready.call("GET", "/admin/audit", params={"limit": 3, "before": second["list_metadata"]["before"]})
    turned = (await ready.call("GET", "/admin/audit", params={"limit": 3, "order": "normal"})).json()

    sequence = [record["seq"] for record in first["data"] + second["data"]]
    assert sequence == sorted(sequence, reverse=True)
    assert [record["seq"] for record in back.json()["data"]] == sequence[:3]
    assert turned["list_metadata"]["after"] is None


async def test_cursor_behind_the_end_is_an_empty_page(paged: Paged):
    """The id of an entry that is gone still marks a place in the list."""
    assert await paged.page(order="asc", after=paged.ids[-1]) == ([], None, None)


async def test_cursor_of_another_list_is_refused(paged: Paged):
    """An id of another kind marks no place here."""
    for cursor in ("event_01", "data_installation_", paged.ids[0][:-1], "op_01M7XGC775FKZVZD21QC59Y0EQ"):
        answer = await paged.backend.call("GET", paged.path, params={**paged.query, "after": cursor})
        refused(answer, 400, "invalid_request")


async def test_providers_are_listed_whole_and_disabled_ones_left_out(ready: Backend):
    """data_providers has no pages; a provider that is off is no offer, unless its account has to be seen."""
    body = (await ready.call("GET", "/organizations/o/data_providers")).json()
    assert body == {"object": "list", "data": []}
    await ready.call("PUT", "/data-integrations/list-3/organization", {"enabled": True})
    body = (await ready.call("GET", "/organizations/o/data_providers")).json()
    assert [row["slug"] for row in body["data"]] == ["list-3"]


async def test_descriptor_that_was_taken_away_hides_nobody_elses(ready: Backend):
    """An integration whose provider left the catalog is still listed, by its slug, and so are the others."""
    async with ready.penstock.services.database.session() as session:
        await session._connection.execute(
            "INSERT INTO integration (environment_id, id, slug, ownership, redirect_key, enabled, state, auth_methods)"
            " VALUES ('default', gen_random_uuid(), 'vanished', 'user', 'dik_vanished', true, 'valid', '{oauth}')"
        )
    body = (await ready.call("GET", "/user_management/users/lister/data_providers")).json()
    assert [(row["slug"], row["name"]) for row in body["data"]] == [("acme", "Acme"), ("vanished", "vanished")]

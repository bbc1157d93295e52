"""Which refresh token, which URL: what a refresh's answer replaces, and what keeps its stored value (T-33, T-22)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.acceptance.refresh_rig import MadeUp, Store, connected, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend

HOME = "https://acme.crm.test"
INSTANCE_URL = """
[metadata.instance_url]
from = "token:/instance_url"
kind = "origin"
hosts = [".crm.test"]
required = true
recapture = "each_refresh"
"""


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    """A provider whose tokens come with the URL they are for, beside the custom provider `acme`."""
    behaviour = {"rotation": "R5", "kills_old_access_token": True, "extra": {"instance_url": HOME}}
    return {"crm": MadeUp(rotation='class = "R5"', more=INSTANCE_URL, behaviour=behaviour)}


@pytest.fixture(scope="module", autouse=True)
def strict(provider: HostileServer) -> None:
    provider.tune(rotation="R5", kills_old_access_token=True)


@pytest.mark.parametrize(
    ("answered", "presented"),
    [("rotate", [1, 2, 3]), ("omitted", [1, 1, 1]), ("same", [1, 1, 1]), ("null", [1, 1, 1]), ("empty", [1, 1, 1])],
)
async def test_right_refresh_token_is_kept(
    backend: Backend, provider: HostileServer, store: Store, answered: str, presented: list[int]
):
    """T-33: a new refresh token replaces the old one; none, the same, null or empty keeps it (RFC 6749 §6)."""
    user = f"user-{answered}"
    grant = await connected(backend, user)
    provider.tune(scope=grant, refresh_token=answered)

    for _ in range(3):
        await store.expire(user)
        token = await backend.access_token(user)
        assert provider.accepts(token["access_token"])

    assert [entry.serial for entry in await refreshes(provider, grant)] == presented


async def test_half_of_the_refreshes_may_bring_no_new_refresh_token(
    backend: Backend, provider: HostileServer, store: Store
):
    """T-33: a provider that rotates only now and then is presented the newest token it has issued."""
    grant = await connected(backend, "moody")
    for answered in ("rotate", "omitted", "rotate", "empty"):
        provider.once(scope=grant, refresh_token=answered)
        await store.expire("moody")
        await backend.access_token("moody")

    assert [entry.serial for entry in await refreshes(provider, grant)] == [1, 2, 2, 3]


async def test_only_one_version_of_a_single_use_token_is_stored(backend: Backend, store: Store):
    """At a provider of class R5 nothing of an earlier version stays behind to be replayed."""
    await connected(backend, "tidy")
    for _ in range(2):
        await store.expire("tidy")
        await backend.access_token("tidy")

    assert await store.versions("tidy") == ["current"]


async def test_instance_url_survives_a_refresh_that_omits_it(backend: Backend, provider: HostileServer, store: Store):
    """The answer of a refresh may leave the instance URL out: the stored one goes on being handed out."""
    await connected(backend, "nina", "crm")
    await store.expire("nina")
    provider.once(scope="crm", extra={})

    token = await backend.access_token("nina", "crm")

    assert token["instance_url"] == HOME
    assert token["metadata"] == {"instance_url": HOME}
    assert provider.accepts(token["access_token"])


async def test_instance_url_that_moved_comes_with_its_own_token(
    backend: Backend, provider: HostileServer, store: Store
):
    """An org may move within the provider: URL and token are always those of one answer."""
    await connected(backend, "olga", "crm")
    await store.expire("olga")
    provider.once(scope="crm", extra={"instance_url": "https://acme.eu.crm.test"})

    token = await backend.access_token("olga", "crm")

    assert token["instance_url"] == "https://acme.eu.crm.test"
    assert (await store.row("olga"))["instance_url"] == "https://acme.eu.crm.test"


@pytest.mark.parametrize("foreign", ["https://acme.crm.test.evil.test", "http://acme.crm.test", "https://evil.test"])
async def test_foreign_instance_url_is_never_handed_out(
    backend: Backend, provider: HostileServer, store: Store, foreign: str
):
    """T-22: a refresh that names a host which is not the provider's takes the connection out of service."""
    user = f"pia-{foreign}"
    await connected(backend, user, "crm")
    await store.expire(user)
    provider.once(scope="crm", extra={"instance_url": foreign})

    answers = [await backend.token(user, "crm") for _ in range(2)]

    assert {answer.json().get("reason") for answer in answers} == {"account_mismatch"}
    assert not any(foreign in answer.text for answer in answers)
    assert (await store.row(user))["state_cause"]

"""Refusals in words that RFC 6749 does not know: who is dead, who is busy, whose fault it is (T-45, T-49, T-50)."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent

import pytest

from tests.acceptance.refresh_rig import MadeUp, Store, connected, refreshes
from tests.hostile import HostileServer
from tests.rig import Backend

# slug: its [errors], and the dialect in which the provider refuses
DIALECTS = {
    "github-like": (
        """
        dead = ["bad_refresh_token"]
        client_fault = ["incorrect_client_credentials"]
        """,
        "github_200",
    ),
    "slack-like": (
        """
        predicate = { pointer = "/ok", absent = true }
        dead = ["invalid_refresh_token"]
        client_fault = ["bad_client_secret"]
        """,
        "slack_ok_false",
    ),
    "hubspot-like": (
        """
        code = "/status"
        description = "/message"
        dead = ["BAD_REFRESH_TOKEN"]
        client_fault = ["BAD_CLIENT_SECRET"]
        """,
        "hubspot_status",
    ),
    "x-like": (
        """
        dead = []
        client_fault = ["unauthorized_client"]

        [[errors.match]]
        class = "dead"
        code = "invalid_request"
        description_contains = "Value passed for the token was invalid"
        """,
        "x_invalid_request",
    ),
    "zoho-like": (
        """
        dead = ["invalid_code"]
        throttled = ["Access Denied"]
        """,
        "zoho_throttle",
    ),
    "atlassian-like": (
        """
        client_fault = ["access_denied"]
        denied = []
        """,
        "atlassian_access_denied",
    ),
    "salesforce-like": (
        """
        [[errors.match]]
        class = "busy"
        description_contains = "already being processed"
        """,
        "salesforce_busy",
    ),
}


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    """A provider of every dialect."""
    return {
        slug: MadeUp(more=f"[errors]\n{dedent(errors)}", behaviour={"dialect": dialect})
        for slug, (errors, dialect) in DIALECTS.items()
    }


@pytest.mark.parametrize("slug", DIALECTS)
async def test_dead_grant_is_recognized_in_every_dialect(
    backend: Backend, provider: HostileServer, store: Store, slug: str
):
    """T-50: inside a 200, under another name, with another status: the grant is over; nothing is read as a success."""
    user = f"dead-{slug}"
    grant = await connected(backend, user, slug)
    await store.expire(user)
    provider.revoke_grant(grant)

    answer = (await backend.token(user, slug)).json()

    assert (answer["error"], answer["reason"]) == ("needs_reauthorization", "revoked")
    assert len(await refreshes(provider, grant)) == 1


@pytest.mark.parametrize("slug", DIALECTS)
async def test_our_fault_is_recognized_in_every_dialect(
    backend: Backend, provider: HostileServer, store: Store, slug: str
):
    """T-45: a wrong client secret, however it is put, is for an operator, and ends no connection."""
    user = f"fault-{slug}"
    grant = await connected(backend, user, slug)
    await store.expire(user)
    provider.tune(scope=grant, refuse="bad_client")

    answer = await backend.token(user, slug)

    assert (answer.status_code, answer.json()["code"]) == (502, "provider_misconfigured")
    assert (await store.row(user))["state"] == "connected"
    assert (await backend.call("GET", f"/data-integrations/{slug}")).json()["state"] == "invalid"


async def test_busy_provider_is_asked_once_more(backend: Backend, provider: HostileServer, store: Store):
    """T-49: "already being processed" is an `invalid_grant` that kills nobody: a moment later there is a token."""
    grant = await connected(backend, "busy", "salesforce-like")
    await store.expire("busy")
    provider.once(scope=grant, refuse="busy")

    token = await backend.access_token("busy", "salesforce-like")

    assert provider.accepts(token["access_token"])
    assert await store.outcomes("busy") == ["busy", "committed"]


async def test_provider_that_stays_busy_ends_nothing(backend: Backend, provider: HostileServer, store: Store):
    """T-49: twice busy is 503 for the caller, not a third request and no verdict."""
    grant = await connected(backend, "busier", "salesforce-like")
    await store.expire("busier")
    provider.tune(scope=grant, refuse="busy")

    answer = await backend.token("busier", "salesforce-like")

    assert (answer.status_code, answer.json()["code"]) == (503, "provider_unavailable")
    assert len(await refreshes(provider, grant)) == 2
    assert (await store.row("busier"))["state"] == "connected"


async def test_throttle_that_sounds_like_a_denial_ends_nothing(backend: Backend, provider: HostileServer, store: Store):
    """Zoho's "Access Denied" with status 400 is too many requests."""
    grant = await connected(backend, "slowed", "zoho-like")
    await store.expire("slowed")
    provider.once(scope=grant, refuse="throttled")

    answer = await backend.token("slowed", "zoho-like")

    assert (answer.status_code, answer.json()["code"]) == (503, "provider_unavailable")
    assert await store.outcomes("slowed") == ["throttled"]

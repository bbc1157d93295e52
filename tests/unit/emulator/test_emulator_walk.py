"""Every descriptor, from consent to revocation, by Penstock's own protocol functions."""

from __future__ import annotations

import pytest

from broker.oauth.model import NO_EXPIRY
from providers.emulator import Knobs
from providers.emulator.people import PEOPLE
from tests.unit.emulator.emulated import CATALOG, Application

# Slack and GitHub OAuth Apps have refresh tokens where the application turned expiry on; a lifetime does that here.
EXPIRING = Knobs(access_token_ttl=3600)

every_provider = pytest.mark.parametrize("slug", CATALOG.slugs)


@every_provider
async def test_a_person_connects_and_is_known(slug: str) -> None:
    """Scopes, account and metadata arrive as the descriptor reads them."""
    application = Application(slug)

    connected = await application.connect(application.descriptor.quirks.required_scopes, user="grace")

    assert await application.works(connected.tokens.access_token)
    if application.descriptor.account.source != "none":
        identity = application.provider.dialect.identity
        assert connected.account is not None
        assert connected.account.id == identity(PEOPLE["grace"]).id != identity(PEOPLE["ada"]).id
    missing = {name for name, source in application.descriptor.metadata.items() if source.required}
    assert missing <= connected.metadata.keys()


@every_provider
async def test_a_refresh_does_to_tokens_what_the_descriptor_says(slug: str) -> None:
    application = Application(slug, knobs=EXPIRING)
    rotation = application.descriptor.rotation
    first = (await application.connect()).tokens
    assert first.refresh_token is not None

    second = await application.refreshed(first)

    assert not second.access_token.matches(first.access_token)
    assert await application.works(second.access_token)
    assert await application.works(first.access_token) is not rotation.kills_old_access_token
    assert (second.refresh_token is None) is (rotation.rotation_class == "R0")
    again = await application.refresh(first)
    assert again.kind == ("dead" if rotation.rotation_class in {"R4", "R5"} else "ok")


@every_provider
async def test_after_a_revocation_no_token_works(slug: str) -> None:
    application = Application(slug, knobs=EXPIRING)
    tokens = (await application.connect()).tokens

    results = await application.revoke(tokens)

    if application.descriptor.revocation.style == "none":
        assert results is None
        return
    assert results == ["succeeded"]
    assert not await application.works(tokens.access_token)
    whole = application.descriptor.revocation.effect != "token"
    assert ((await application.refresh(tokens)).kind == "dead") is whole


@every_provider
async def test_revoking_twice_still_comes_to_a_success(slug: str) -> None:
    """Whatever a provider says of a token that is gone, it is what was asked for."""
    application = Application(slug)
    tokens = (await application.connect()).tokens
    if await application.revoke(tokens) is None or slug == "slack":  # Slack's call needs the token that it ends
        return

    assert await application.revoke(tokens) == ["succeeded"]


@every_provider
async def test_a_person_who_says_no_is_reported_in_the_providers_word(slug: str) -> None:
    application = Application(slug)

    callback = await application.callback(decision="deny")

    assert callback.code is None
    assert callback.error in application.descriptor.errors.denied


@every_provider
@pytest.mark.parametrize(
    ("mood", "kind"),
    [
        ("dead", "dead"),
        ("throttled", "throttled"),
        ("invalid_client", "client_fault"),
        ("server_error", "unavailable"),
        ("garbage", "in_doubt"),
    ],
)
async def test_each_mood_means_what_it_is_called(slug: str, mood: str, kind: str) -> None:
    """The protocol reads each provider's words as the knob meant them."""
    application = Application(slug, knobs=EXPIRING)
    tokens = (await application.connect()).tokens
    application.emulator.turn(refresh=mood)

    assert (await application.refresh(tokens)).kind == kind


@every_provider
async def test_a_refusal_by_mood_changes_nothing(slug: str) -> None:
    application = Application(slug, knobs=EXPIRING)
    tokens = (await application.connect()).tokens
    for mood in ("dead", "busy", "throttled", "invalid_client", "server_error"):
        application.emulator.turn(refresh=mood)
        await application.refresh(tokens)

    application.emulator.turn(refresh="ok")

    assert (await application.refresh(tokens)).kind == "ok"


@every_provider
async def test_garbage_hides_a_refresh_that_happened(slug: str) -> None:
    """The answer is lost and the rotation is not, which is what a vault has to survive."""
    application = Application(slug, knobs=Knobs(access_token_ttl=3600, rotation="R4"))
    tokens = (await application.connect()).tokens
    application.emulator.turn(refresh="garbage")
    await application.refresh(tokens)

    application.emulator.turn(refresh="ok")

    assert (await application.refresh(tokens)).kind == "dead"


@every_provider
async def test_a_wrong_client_secret_is_the_operators_fault_and_no_connections_end(slug: str) -> None:
    application = Application(slug, knobs=EXPIRING)
    tokens = (await application.connect()).tokens
    application.provider.register(application.client.client_id, "another-secret-by-now")

    assert (await application.refresh(tokens)).kind == "client_fault"


@every_provider
async def test_a_code_works_once(slug: str) -> None:
    """The second use ends what came of the first (RFC 6749 §4.1.2)."""
    application = Application(slug)
    callback = await application.callback()
    first, _ = await application.exchange(callback)
    assert first.tokens is not None

    second, _ = await application.exchange(callback)

    assert second.tokens is None
    assert not await application.works(first.tokens.access_token)


@every_provider
async def test_a_code_lives_as_long_as_the_descriptor_says(slug: str) -> None:
    application = Application(slug)
    callback = await application.callback()

    application.clock.time += application.descriptor.quirks.code_ttl

    assert (await application.exchange(callback))[0].tokens is None


@every_provider
async def test_an_access_token_dies_when_its_time_is_over(slug: str) -> None:
    application = Application(slug)
    tokens = (await application.connect()).tokens

    application.clock.passes(days=1)

    assert await application.works(tokens.access_token) is (application.provider.dialect.access_token_ttl is None)


@every_provider
async def test_the_lifetime_is_stated_where_the_provider_states_one(slug: str) -> None:
    application = Application(slug, knobs=EXPIRING)
    outcome, _ = await application.exchange(await application.callback())
    assert outcome.tokens is not None

    states = application.descriptor.rotation.access_token_ttl in {None, NO_EXPIRY}

    assert outcome.tokens.expires_in == (3600 if states else None)


@every_provider
async def test_an_idle_refresh_token_dies(slug: str) -> None:
    application = Application(slug, knobs=EXPIRING)
    idle = application.provider.rule.idle_ttl
    tokens = (await application.connect()).tokens
    if idle is None:
        application.clock.passes(days=3650)
        assert (await application.refresh(tokens)).kind == "ok"
        return

    application.clock.time += idle
    renewed = await application.refreshed(tokens)
    application.clock.time += idle
    application.clock.passes(seconds=1)

    last = tokens if renewed.refresh_token is None else renewed
    assert (await application.refresh(last)).kind == "dead"

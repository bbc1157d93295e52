"""Rotation classes, each as its definition in providers/README.md says."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from broker.oauth.catalog import Catalog
from broker.oauth.model import Rotation, TokenSet
from providers.emulator import Knobs
from providers.emulator.rotation import may_be_used_again, rule_of
from tests.unit.emulator.emulated import BEGINNING, CATALOG, Application

GRACE = timedelta(minutes=10)


def application_of(rotation: Rotation) -> Application:
    """Return an application at a provider that is Google but for its rotation."""
    google = CATALOG.get("google")
    assert google is not None
    catalog = Catalog({"google": msgspec.structs.replace(google, rotation=rotation)})
    return Application("google", catalog=catalog)


def rotating(rotation_class: str, **more: object) -> Application:
    return application_of(msgspec.convert({"class": rotation_class, "kills_old_access_token": False, **more}, Rotation))


async def connected(application: Application) -> TokenSet:
    return (await application.connect()).tokens


async def test_r0_never_brings_another() -> None:
    application = rotating("R0")
    first = await connected(application)

    second = await application.refreshed(first)

    assert second.refresh_token is None
    assert (await application.refresh(first)).kind == "ok"


async def test_r1_brings_a_new_one_each_time_and_old_ones_stay_good() -> None:
    application = rotating("R1")
    first = await connected(application)
    second = await application.refreshed(first)
    third = await application.refreshed(second)

    application.clock.passes(days=30)

    assert [(await application.refresh(each)).kind for each in (first, second, third)] == ["ok"] * 3


async def test_r2_keeps_the_old_one_until_the_new_access_token_is_used() -> None:
    application = rotating("R2")
    first = await connected(application)
    await application.refreshed(first)
    second = await application.refreshed(first)

    assert await application.works(second.access_token)

    assert (await application.refresh(first)).kind == "dead"
    assert (await application.refresh(second)).kind == "ok"


async def test_r2_keeps_the_old_one_until_the_new_refresh_token_is_used() -> None:
    application = rotating("R2")
    first = await connected(application)
    second = await application.refreshed(first)

    await application.refreshed(second)

    assert (await application.refresh(first)).kind == "dead"


async def test_r2_may_limit_how_long_it_waits() -> None:
    application = rotating("R2", reuse_grace=GRACE)
    first = await connected(application)
    await application.refreshed(first)

    application.clock.time += GRACE
    in_time = await application.refresh(first)
    application.clock.passes(seconds=1)

    assert in_time.kind == "ok"
    assert (await application.refresh(first)).kind == "dead"


async def test_r3_takes_the_old_one_for_a_while() -> None:
    application = rotating("R3", reuse_grace=GRACE)
    first = await connected(application)
    second = await application.refreshed(first)

    application.clock.time += GRACE
    in_time = await application.refresh(first)
    application.clock.passes(seconds=1)
    late = await application.refresh(first)

    assert (in_time.kind, late.kind) == ("ok", "dead")
    assert (await application.refresh(second)).kind == "ok"


async def test_r4_refuses_the_old_one_and_leaves_the_new_one_alone() -> None:
    application = rotating("R4")
    first = await connected(application)
    second = await application.refreshed(first)

    assert (await application.refresh(first)).kind == "dead"
    assert (await application.refresh(second)).kind == "ok"


async def test_r5_ends_the_family_when_the_old_one_comes_back() -> None:
    application = rotating("R5")
    first = await connected(application)
    second = await application.refreshed(first)

    assert (await application.refresh(first)).kind == "dead"
    assert (await application.refresh(second)).kind == "dead"
    assert not await application.works(second.access_token)


@pytest.mark.parametrize("kills", [True, False])
async def test_old_access_tokens_die_where_the_descriptor_says_so(kills: bool) -> None:
    application = rotating("R1", kills_old_access_token=kills)
    first = await connected(application)

    await application.refreshed(first)

    assert await application.works(first.access_token) is not kills


async def test_a_grant_ends_at_its_absolute_age_however_often_it_is_refreshed() -> None:
    application = rotating("R1", refresh_token_absolute_ttl=timedelta(days=365))
    tokens = await connected(application)
    application.clock.passes(days=200)
    renewed = await application.refreshed(tokens)

    application.clock.passes(days=166)

    assert (await application.refresh(renewed)).kind == "dead"


async def test_the_knob_overrules_the_class_and_its_habits() -> None:
    application = Application("salesforce", knobs=Knobs(rotation="R1"))
    first = (await application.connect(["api"])).tokens

    await application.refreshed(first)

    assert await application.works(first.access_token)
    assert (await application.refresh(first)).kind == "ok"


@pytest.mark.parametrize(
    ("rotation_class", "grace", "after", "usable"),
    [
        ("R0", None, timedelta(days=999), True),
        ("R1", None, timedelta(days=999), True),
        ("R2", None, timedelta(days=999), True),
        ("R2", GRACE, GRACE + timedelta(seconds=1), False),
        ("R3", GRACE, GRACE, True),
        ("R3", GRACE, GRACE + timedelta(seconds=1), False),
        ("R3", None, timedelta(0), False),
        ("R4", GRACE, timedelta(0), False),
        ("R5", GRACE, timedelta(0), False),
    ],
)
def test_a_spent_token_is_judged_by_class_and_age(
    rotation_class: str, grace: timedelta | None, after: timedelta, usable: bool
) -> None:
    rule = rule_of(msgspec.convert({"class": rotation_class, "reuse_grace": grace}, Rotation), None)

    assert may_be_used_again(rule, spent_at=BEGINNING, now=BEGINNING + after) is usable

"""T-86 in small: the property state machine with a fixed budget. `make soak` runs it for longer, and replays a seed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from broker.embedded import EmbeddedPostgres
from tests.soak.stories import run_stories
from tests.soak.world import Template

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SEEDS = (11, 12)  # those of every run: a commit that fails here fails again


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """An event loop of the stories' own: Hypothesis calls their steps one by one, and none runs between."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def template(
    runner: asyncio.Runner, postgres: EmbeddedPostgres, admin: object, tmp_path_factory: pytest.TempPathFactory
) -> Template:
    """The database that each story gets a copy of; *admin* has made the migrated one."""
    home = tmp_path_factory.mktemp("soak") / "home"
    return runner.run(Template.made(postgres.dsn_of, home, migrated="migrated"))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_order_of_events_breaks_an_invariant(runner: asyncio.Runner, template: Template, seed: int) -> None:
    """T-86: I1 to I9 hold after every step of whatever callers, people, providers, clocks and crashes do."""
    run_stories(runner, template, seed=seed, shrink=False)

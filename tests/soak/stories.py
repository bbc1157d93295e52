"""Run stories of the state machine: the same seed tells the same ones."""

from __future__ import annotations

import asyncio

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.soak.machine import PenstockMachine
from tests.soak.world import Template

STEPS = 60  # at most, in one story
STORIES = 15  # of one seed; another number would make other stories of it


def run_stories(runner: asyncio.Runner, template: Template, *, seed: int, shrink: bool = True) -> None:
    """Run the stories of a seed; raise what a failing one violates, with its steps in the notes.

    *shrink*: search for its shortest form first, which takes up to five minutes.
    The steps of a story follow from the seed. How the tasks of one step interleave does not, quite: it is real
    PostgreSQL and real sockets that they wait for.
    """
    factory = hypothesis.seed(seed)(lambda: PenstockMachine(runner, template))
    limits = settings(
        max_examples=STORIES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(factory, settings=limits)

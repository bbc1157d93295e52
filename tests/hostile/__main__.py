"""Run one hostile server as a process: `python -m tests.hostile --port 0 --knobs '{"rotation": "R5"}'`."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal

from .knobs import knobs_of
from .server import HostileServer


async def _run(server: HostileServer) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with server:
        print(json.dumps({"url": server.url, "port": server.port}), flush=True)
        await stopped.wait()


def main() -> None:
    """Listen until SIGTERM or SIGINT, after one line of JSON with the address."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--knobs", type=json.loads, default={}, help="a JSON object; bytes are base64")
    options = parser.parse_args()
    asyncio.run(_run(HostileServer(host=options.host, port=options.port, knobs=knobs_of(options.knobs))))


if __name__ == "__main__":
    main()

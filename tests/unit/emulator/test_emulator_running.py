"""The emulator on a real port, as Penstock, a browser and the command line meet it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from datetime import timedelta

import httpx
import pytest
from click.testing import CliRunner

from broker.oauth.token import code_request, refresh_request
from broker.outbound import Outbound, SendFailed
from broker.secret import Secret
from providers.emulator import Emulator, Knobs, RunningEmulator
from providers.emulator.command import emulate
from tests.unit.emulator.emulated import CATALOG, VERIFIER, Application


async def test_penstocks_outbound_client_reaches_a_provider_by_its_own_name() -> None:
    application = Application("github")
    code = (await application.callback()).code
    assert code is not None
    request = code_request(
        application.descriptor,
        application.endpoints,
        application.registration,
        code=code,
        code_verifier=Secret(VERIFIER),
        config={},
    )

    async with RunningEmulator(application.emulator) as running:
        outbound = Outbound(provider_hosts=application.emulator.provider_hosts(running.origin))
        answer = await outbound.send(request, hosts=["github.com"])
        await outbound.aclose()

    assert answer.status == 200
    assert json.loads(answer.body)["access_token"].startswith("gho_")


async def test_a_browser_reaches_a_provider_below_the_emulators_own_address() -> None:
    application = Application("github")
    url = application.authorization_url(["repo"])

    async with RunningEmulator(application.emulator) as running, httpx.AsyncClient() as browser:
        own = url.replace("https://github.com", f"{running.origin}/_host/github.com")
        page = await browser.get(own)
        back = await browser.post(own, data={"user": "grace", "decision": "approve"})

    assert "Read and change every repository" in page.text
    assert back.headers["location"].startswith(application.registration.redirect_uri)


async def test_a_hanging_refresh_has_happened() -> None:
    """The client gives up, and the provider has rotated: the answer is what got lost."""
    application = Application("github-app", knobs=Knobs(hang_seconds=5))
    tokens = (await application.connect()).tokens
    application.emulator.turn(refresh="hang")

    async with RunningEmulator(application.emulator) as running:
        outbound = Outbound(provider_hosts=application.emulator.provider_hosts(running.origin))
        request = refresh_request(
            application.descriptor,
            application.endpoints,
            application.registration,
            refresh_token=tokens.refresh_token,
            access_token=tokens.access_token,
            config={},
        )
        with pytest.raises(SendFailed):
            await outbound.send(request, hosts=["github.com"], deadline=timedelta(seconds=0.3))
        await outbound.aclose()

    application.emulator.turn(refresh="ok")
    assert (await application.refresh(tokens)).kind == "dead"


async def test_every_answer_takes_as_long_as_the_knob_says() -> None:
    application = Application("github", knobs=Knobs(latency=0.2))

    started = time.monotonic()
    await application.ask("GET", "https://api.github.com/user")

    assert time.monotonic() - started >= 0.2


async def test_it_leaves_its_port_and_the_processes_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    async with RunningEmulator(Emulator(["slack"], catalog=CATALOG)) as running:
        during = signal.getsignal(signal.SIGINT)
        port = int(running.origin.rpartition(":")[2])

    assert before is during is signal.getsignal(signal.SIGINT)
    async with RunningEmulator(Emulator(["slack"], catalog=CATALOG), port=port) as again:
        assert again.origin == running.origin


async def test_a_port_that_is_taken_is_the_callers_error() -> None:
    async with RunningEmulator(Emulator(["slack"], catalog=CATALOG)) as running:
        taken = RunningEmulator(running.emulator, port=int(running.origin.rpartition(":")[2]))
        with pytest.raises(OSError, match="in use"):
            await taken.__aenter__()


# --- the command ------------------------------------------------------------------------------------------------------


async def test_the_command_prints_what_to_set_and_ends_when_told() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "providers.emulator", "github", "--port", "0", "--json", "--knob", "consent=auto"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    facts = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
    async with httpx.AsyncClient() as client:
        knobs = (await client.get(f"{facts['origin']}/_emulator/knobs")).json()
        printed = (await client.get(f"{facts['origin']}/_emulator")).json()
    process.send_signal(signal.SIGTERM)

    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert printed == facts
    assert facts["environment"]["PENSTOCK_PROVIDER_HOSTS"].startswith(f"api.github.com={facts['origin']},")
    (github,) = facts["providers"]
    assert (github["client_id"], github["client_secret"]) == ("emulated-github", "emulated-github-secret")
    assert github["people"]["grace"]["id"] == "1002"
    assert knobs["providers"]["github"]["consent"] == "auto"


async def test_the_command_prints_for_people_too() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "providers.emulator", "slack", "--port", "0"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    text = (await asyncio.wait_for(process.stdout.readuntil(b"/journal"), 20)).decode()
    process.send_signal(signal.SIGINT)

    assert await asyncio.wait_for(process.wait(), 20) == 0
    lines = [line.split() for line in text.splitlines()]
    assert ["client_id", "emulated-slack"] in lines
    assert ["client_secret", "emulated-slack-secret"] in lines
    assert "PENSTOCK_PROVIDER_HOSTS='files.slack.com=http://127.0.0.1:" in text
    assert "Globex, account U01002, of Globex" in text


def test_the_command_says_that_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(emulate, ["slack", "--port", str(taken.getsockname()[1])])

    assert result.exit_code == 1
    assert "cannot listen on 127.0.0.1:" in result.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["gitbub"], "'gitbub' is not in the catalog"),
        (["github", "--knob", "consnt=auto"], "no knob 'consnt'"),
        (["github", "--knob", "slack.consent=auto"], "'slack' is not emulated"),
        (["github", "--knob", "consent"], "is not name=value"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(emulate, arguments)

    assert result.exit_code == 2
    assert named in result.output


def test_the_help_explains_every_knob() -> None:
    result = CliRunner().invoke(emulate, ["--help"])

    assert result.exit_code == 0
    assert [name for name in Knobs.__struct_fields__ if f"  {name}: " not in result.output] == []

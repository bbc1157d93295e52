"""The keyring among processes: rotated, killed and sealed with at the same time, every secret stays readable."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.vault.keyring import FileKeyring
from broker.vault.seal import rewrap, unseal

pytestmark = pytest.mark.slow

SEALER = """
import sys, time
from pathlib import Path
from broker.vault.keyring import FileKeyring
from broker.vault.seal import Binding, seal, unseal

keyring, seconds = FileKeyring.open(Path(sys.argv[1]), production=True), float(sys.argv[2])
binding = Binding(deployment_id="dep-1", environment_id="tenant-a", connection_id="grant-1", owner_id="user-1",
                  integration_id="pc-1", secret_kind="token_set", version_no=7)
until = time.monotonic() + seconds
while time.monotonic() < until:
    blob = seal(keyring, binding, b"tokens").blob
    assert unseal(keyring, binding, blob) == b"tokens"
    sys.stdout.write(blob.hex() + "\\n")
    sys.stdout.flush()
    time.sleep(0.005)
"""

ROTATOR = """
import sys, time
from pathlib import Path
from broker.vault.keyring import FileKeyring

keyring = FileKeyring.open(Path(sys.argv[1]), production=True)
while True:
    print(keyring.rotate()[0], flush=True)
    time.sleep(0.02)
"""

# Forks once for each line of the writing code and dies there by SIGKILL, until a child gets through.
DIES_EVERYWHERE = """
import os, signal, sys
from pathlib import Path
from broker.vault import keyfile
from broker.vault.keyring import FileKeyring

path = Path(sys.argv[1])
written = {keyfile.write.__code__, keyfile.locked.__wrapped__.__code__, FileKeyring.rotate.__code__}

def rotate_and_die_at(line):
    def trace(frame, event, argument):
        nonlocal line
        if frame.f_code not in written:
            return None
        if event == "line":
            line -= 1
            if line < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    keyring = FileKeyring.open(path)
    sys.settrace(trace)
    keyring.rotate()

deaths = 0
while True:
    child = os.fork()
    if child == 0:
        rotate_and_die_at(deaths)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    deaths += 1
    survivor = FileKeyring.open(path, production=True)
    for version in survivor.versions:
        assert version.state in ("primary", "enabled")
    wrapped, ref = survivor.wrap(bytes(32))
    assert survivor.unwrap(wrapped, ref) == bytes(32)
    print(ref, wrapped.hex(), flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def rotate_and_kill(path: Path, *, times: int) -> Iterator[str]:
    """Start a rotating process, kill it without warning, and again; yield the references it announced."""
    for _ in range(times):
        rotator = start(ROTATOR, path)
        assert rotator.stdout is not None
        yield rotator.stdout.readline().strip()
        time.sleep(0.15)
        rotator.kill()
        yield from rotator.communicate()[0].split()


def test_every_secret_stays_readable_while_two_processes_rotate_and_two_seal(keyring, binding):
    """Blobs sealed during rotations by other processes all open, and rewrap ends at one key version."""
    sealers = [start(SEALER, keyring.path, 5) for _ in range(2)]
    second_rotator = start(ROTATOR, keyring.path)
    announced = list(rotate_and_kill(keyring.path, times=5))
    blobs = [bytes.fromhex(line) for sealer in sealers for line in sealer.communicate()[0].split()]
    second_rotator.kill()
    second_rotator.communicate()

    assert [sealer.returncode for sealer in sealers] == [0, 0]
    assert all(unseal(keyring, binding, blob) == b"tokens" for blob in blobs)
    keyring.reload()
    rewrapped = [sealed for blob in blobs if (sealed := rewrap(keyring, blob))]
    assert {sealed.kek_ref for sealed in rewrapped} == {keyring.primary_ref}
    assert all(unseal(keyring, binding, sealed.blob) == b"tokens" for sealed in rewrapped)

    known = {version.ref for version in keyring.versions}
    assert set(announced) <= known  # a rotation that was acknowledged is never lost
    assert len(announced) >= 5
    used = {blob.split(b"local:")[1].split(b"\0")[0] for blob in blobs}
    assert len(used) >= 3  # each sealer took up versions that others had made


def test_a_rotation_killed_at_any_line_leaves_a_readable_keyring(keyring):
    """Wherever a writer dies, the file opens, what was sealed opens, and the next rotation succeeds."""
    wrapped, ref = keyring.wrap(bytes(32))
    process = start(DIES_EVERYWHERE, keyring.path)
    output, _ = process.communicate()

    assert process.returncode == 0
    survived = [line.split() for line in output.splitlines()]
    assert len(survived) > 30
    assert keyring.unwrap(wrapped, ref) == bytes(32)
    for ref_then, wrapped_then in survived:
        assert keyring.unwrap(bytes.fromhex(wrapped_then), ref_then) == bytes(32)
    keyring.rotate()
    assert {entry.name for entry in keyring.path.parent.iterdir()} == {"keyring.json", "keyring.json.lock"}


def test_processes_that_start_together_agree_on_one_new_keyring(tmp_path):
    """Of several first starts in development one makes the keyring and the others use it."""
    script = "import sys; from broker.vault.keyring import open_keyring; "
    script += "print(open_keyring('file:' + sys.argv[1], production=False).primary_ref)"
    starts = [start(script, tmp_path / "home" / "keyring.json") for _ in range(4)]
    refs = {process.communicate()[0].strip() for process in starts}

    assert refs == {FileKeyring.open(tmp_path / "home" / "keyring.json").primary_ref}

"""Which test holds which case: read from the tests' docstrings, written into tests/README.md.

python -m tests.promises                     # writes the table anew
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS / "README.md"
BEGIN, END = "<!-- cases: written by python -m tests.promises -->\n", "<!-- end of cases -->\n"

# Those that the refresh engine is held to; each has a test, or the suite fails.
REFRESH = {
    33: "every rotation class × what a refresh says of the refresh token, over a day",
    34: "many callers at the expiry of one connection, several servers",
    35: "thousands of connections expire in the same second",
    36: "a slow provider, and callers who give up",
    37: "`kill -9`, an exception or a hang at each step, each class",
    38: "SIGTERM while a refresh is in flight",
    39: "SIGSTOP of a lease holder for twice the lease, then SIGCONT",
    40: "the answer is lost after the provider acted, each class",
    41: "the request is lost before the provider acted",
    42: "answers in another order than they were given",
    43: "a caller reports the token it was refused with",
    44: "`invalid_grant`, once, real",
    45: "a wrong client secret",
    46: "a provider refuses grants by the dozen",
    47: "throttled, in every form",
    48: "an outage, in every form",
    49: '"token request is already being processed"',
    50: "dead, and other things, in each dialect; unknown codes",
    58: "disconnect, with every answer to the revocation",
    59: "disconnect while a refresh is in flight",
    60: "forced reauthorization and reconnect while a refresh is in flight",
    61: "the user ends the grant at the provider",
    72: "every hand-out has an earlier record",
    73: "PostgreSQL goes away, or refuses, at each step",
    76: "exactly one insert of a new version is refused",
    77: "disk full: PostgreSQL, the spool, both",
    78: "Redis flushed, stopped, slow, failed over",
    83: "clocks that are wrong",
    85: "a stalled loop, exhaustion, one dead provider",
}
OTHERS = {
    1: "PKCE stripped, ignored or refused",
    2: "a callback used twice",
    3: "a callback with an old or foreign state",
    4: "a callback without its cookie, or with another's",
    5: "an attacker's answer in the victim's browser",
    6: "a link that somebody else completes",
    7: "a rogue provider that bounces to the honest one",
    8: "an answer at another integration's address",
    9: "every form of `iss`",
    10: "an error from another issuer",
    13: "the integration is edited in mid-flow",
    14: "link scanners",
    15: "reconnect with another account",
    17: "addresses inside the network",
    18: "DNS rebinding",
    19: "redirects of the back channel",
    22: "instance URLs of a stranger",
    23: "return addresses off the list",
    25: "malformed callbacks",
    26: "hostile text from a provider",
    27: "headers and methods of the browser's pages",
    28: "unreadable token answers",
    29: "errors inside a 200",
    30: "drips, stalls, endless bodies",
    31: "certificates that are wrong",
    32: "every form of `expires_in`",
    57: "browsers at the routes of servers",
    67: "revoking thousands at once",
    70: "the audit table refuses",
    74: "a promoted standby that lacks the last commits",
    75: "a database of yesterday",
    81: "key rotation under load",
    86: "a soak with everything at random",
}
CASES = REFRESH | OTHERS


@cache
def claims() -> dict[int, list[str]]:
    """Return the tests of each case, as `path::name`, in the order of their files.

    A test's docstring names its cases; a module whose docstring begins with a case names it for all of its tests.
    """
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        if "node_modules" not in path.parts:
            for name, docstring in _tests(path):
                for number in {int(digits) for digits in re.findall(r"\bT-(\d+)", docstring)}:
                    found[number].append(f"{path.relative_to(TESTS).as_posix()}::{name}")
    return dict(found)


def _tests(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each test with all that is said of its cases."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    of_all = re.match(r"T-\d+", ast.get_docstring(module) or "")
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name, f"{of_all[0] if of_all else ''} {ast.get_docstring(node) or ''}"


def table(titles: dict[int, str]) -> str:
    """Return the cases of *titles* with their tests, as Markdown."""
    found = claims()
    rows = [
        f"| T-{number:02} | {title} | {'<br>'.join(f'`{test}`' for test in found.get(number, []))} |"
        for number, title in sorted(titles.items())
    ]
    return "\n".join(["| Case | What happens | Held by |", "|---|---|---|", *rows, ""])


def cases() -> str:
    """Return the generated part of the page."""
    return (
        f"### Refresh, revocation, store, time\n\n{table(REFRESH)}\n"
        f"### Connecting, the network, operators, restores\n\n{table(OTHERS)}"
    )


def written(page: str, part: str) -> str:
    """Return *page* with *part* between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{part}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), cases()), encoding="utf-8")

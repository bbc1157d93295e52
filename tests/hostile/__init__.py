"""A hostile authorization server that shares no code with Penstock, its journal, its judge and a small browser.

async with HostileServer(knobs=Knobs(rotation="R5")) as provider:
    …                                            # a descriptor that points at provider.url
    provider.once(lose="response")               # the next token answer is processed, then lost
    …
    assert judge(await provider.settled()) == []
"""

from .browser import Browser, Hop
from .journal import Entry, Journal, fingerprint
from .judge import ClientAnswer, judge, judge_hosts
from .knobs import Answer, Knobs
from .server import HostileServer

__all__ = [
    "Answer",
    "Browser",
    "ClientAnswer",
    "Entry",
    "Hop",
    "HostileServer",
    "Journal",
    "Knobs",
    "fingerprint",
    "judge",
    "judge_hosts",
]

"""A hostile authorization server that shares no code with Penstock, and its journal.

async with HostileServer(knobs=Knobs(rotation="R5")) as provider:
    …                                            # a descriptor that points at provider.url
    provider.once(lose="response")               # the next token answer is processed, then lost
    …
    assert judge(await provider.settled()) == []
"""

from .journal import Entry, Journal, fingerprint
from .knobs import Answer, Knobs
from .server import HostileServer

__all__ = [
    "Answer",
    "Entry",
    "HostileServer",
    "Journal",
    "Knobs",
    "fingerprint",
]

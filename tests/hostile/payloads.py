"""Hostile token answers, ready to be queued: `server.once(answer=payloads.BOM)`."""

from __future__ import annotations

import gzip

from .knobs import Answer

HTML = Answer(body=b"<!doctype html><title>Maintenance</title><p>Back soon.", content_type="text/html")
EMPTY = Answer(body=b"")
ARRAY = Answer(body=b'[{"access_token": "CANARY_AT_in_an_array", "token_type": "Bearer"}]')
NOT_UTF8 = Answer(body=b'{"access_token": "CANARY_AT_\xff\xfe", "token_type": "Bearer"}')
DUPLICATE_KEYS = Answer(
    body=b'{"access_token": "CANARY_AT_first", "access_token": "CANARY_AT_second", "token_type": "Bearer"}'
)
DEEP = Answer(body=b'{"access_token": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")

# The following are genuine answers, spoilt on their way out: the tokens have rotated.
BOM = Answer(prefix=b"\xef\xbb\xbf", process=True)
TEXT_HTML = Answer(content_type="text/html", process=True)
NO_CONTENT_TYPE = Answer(content_type=None, process=True)
TRUNCATED = Answer(keep=-12, process=True)  # well framed, but not JSON any more
SHORT = Answer(keep=-12, length="before_cut", process=True)  # fewer bytes than Content-Length promises
CUT_BY_CLOSE = Answer(keep=-12, length="absent", process=True)
CLOSE_DELIMITED = Answer(length="absent", process=True)
REPLACED_BY_HTML = Answer(body=HTML.body, content_type="text/html", process=True)
FAILED_AFTERWARDS = Answer(status=500, body=b'{"error": "server_error"}', process=True)


def large(size: int = 10 << 20) -> Answer:
    """Return valid JSON of *size* bytes and more."""
    return Answer(body=b'{"access_token": "CANARY_AT_large", "padding": "' + b"x" * size + b'"}')


def gzip_bomb(size: int = 100 << 20) -> Answer:
    """Return an answer that unpacks to *size* bytes, whatever Accept-Encoding said."""
    packed = gzip.compress(b'{"access_token": "CANARY_AT_bomb", "padding": "' + bytes(size) + b'"}')
    return Answer(body=packed, headers=(("Content-Encoding", "gzip"),))


def redirect(status: int, location: str) -> Answer:
    """Return a redirect: 301, 302, 307 or 308."""
    return Answer(status=status, body=b"", content_type=None, headers=(("Location", location),))

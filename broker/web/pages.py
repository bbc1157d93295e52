"""The pages people see while they connect an account: what goes into each, and the headers that keep it to itself."""

from __future__ import annotations

import secrets
import tomllib
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_HERE = Path(__file__).parent
_TINTS = 6  # .tint-0 … .tint-5 in page.css
_FEW_SCOPES = 6  # shown at once; the others unfold
_NAME, _ID, _SCOPE, _PURPOSE = 60, 96, 200, 600  # characters shown
_JOINERS = "\u200c\u200d"  # invisible, but Persian and emoji need them


class Page(msgspec.Struct, frozen=True):
    """A complete answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class ScopeLine(msgspec.Struct, frozen=True):
    """One permission: the provider's name for it, and what that means; "" and unknown where nobody has said."""

    name: str
    description: str
    scope_class: Literal["read", "write", "admin", "unknown"]


class OwnerLine(msgspec.Struct, frozen=True):
    """For whom an account is being connected, in the application's own identifiers."""

    user_id: str | None = None
    organization_id: str | None = None


class Pages:
    """Render each page in one language; `messages/<language>.toml` has its words."""

    def __init__(
        self,
        *,
        secure: bool,
        language: str = "en",
        random: Callable[[int], str] = secrets.token_urlsafe,
    ) -> None:
        self._secure = secure
        self._random = random
        self._text: dict[str, Any] = tomllib.loads((_HERE / "messages" / f"{language}.toml").read_text("utf-8"))
        self._templates = Environment(
            loader=FileSystemLoader((_HERE / "templates", _HERE / "assets")),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
        )
        self._templates.filters["fill"] = _fill
        self._templates.globals["text"] = self._text

    def confirm(
        self,
        *,
        provider_name: str,
        owner: OwnerLine,
        purpose: str | None,
        scopes: Sequence[ScopeLine],
        action: str,
        reauthorize: bool,
        expires_in_minutes: int,
    ) -> Page:
        """Ask whoever opened the link whether they mean it; without session binding nothing else protects them."""
        return self._page(
            "confirm",
            form=True,
            script="confirm.js",
            provider=_shown(provider_name, _NAME),
            tile=_tile(provider_name),
            owner=OwnerLine(_shown_id(owner.user_id), _shown_id(owner.organization_id)),
            purpose=_shown(purpose or "", _PURPOSE),
            scopes=[
                ScopeLine(_shown(scope.name, _ID), _shown(scope.description, _SCOPE), scope.scope_class)
                for scope in scopes
            ],
            few=_FEW_SCOPES,
            action=action,
            reauthorize=reauthorize,
            minutes=str(max(1, expires_in_minutes)),
        )

    def proceed(self, *, provider_name: str, action: str) -> Page:
        """Post at once, by script or by button: session binding proves later who the person is."""
        return self._page(
            "proceed",
            form=True,
            script="proceed.js",
            provider=_shown(provider_name, _NAME),
            tile=_tile(provider_name),
            action=action,
        )

    def finished(self, *, provider_name: str | None) -> Page:
        """Say that the account is connected and the tab may go."""
        name = provider_name or ""
        return self._page("finished", provider=_shown(name, _NAME), tile=_tile(name) if name else None)

    def failed(self, *, code: str, request_id: str | None, status: int = 400) -> Page:
        """Say why nothing was connected and what to do; a code that is not in the messages gets a general text.

        Only our own codes are shown: what a provider sends is the attacker's text (RFC 6749 §4.1.2.1).
        """
        known = self._text["failed"]["codes"].get(code)
        return self._page(
            "failed",
            status=status,
            failure=known or self._text["failed"]["unknown"],
            code=code if known else None,
            request_id=_shown_id(request_id),
        )

    def redirecting(self) -> Page:
        """Show that something is happening, in the tab that the widget has just opened."""
        return self._page("redirecting")

    def development(self, *, title: str, facts: Sequence[tuple[str, str]], links: Sequence[tuple[str, str]]) -> Page:
        """Show what runs where, and links as (label, address), to whoever started Penstock for development."""
        return self._page("development", title=title, facts=facts, links=links)

    def redirect(self, to: str) -> Page:
        """Send the browser on by GET, whatever it came with: after 307 a form's body would go to the next host, too."""
        headers = {**_headers(secure=self._secure), "Location": to}
        return Page(303, b"", headers)

    def _page(
        self, template: str, *, status: int = 200, form: bool = False, script: str | None = None, **values: object
    ) -> Page:
        nonce = self._random(16)
        body = self._templates.get_template(f"{template}.html").render(nonce=nonce, script=script, **values)
        own = [f"style-src 'nonce-{nonce}'", "img-src data:", *([f"script-src 'nonce-{nonce}'"] if script else [])]
        return Page(status, body.encode(), _headers(*own, form=form, secure=self._secure))


def _headers(*sources: str, form: bool = False, secure: bool) -> Mapping[str, str]:
    """Return the headers of an answer to a browser (RFC 9700 §4.2.4 and §4.16); *sources* is what its page may use.

    There is no Cross-Origin-Opener-Policy: any value severs the widget from the tab it opened (pipes-api.md 11.5).
    """
    # form-action is missing on purpose: Chromium (156 still) applies it to the redirects after a post as well, and
    # stops the one to the provider. It does not fall back to default-src.
    policy = ["default-src 'none'", *sources, "base-uri 'none'", "frame-ancestors 'none'"]
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(policy),
        # Under no-referrer a form posts `Origin: null` (Fetch, "append a request Origin header"; so does Chromium 156),
        # and the server refuses a post whose Origin is not its own. same-origin tells other origins as little.
        "Referrer-Policy": "same-origin" if form else "no-referrer",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
    if secure:
        headers["Strict-Transport-Security"] = "max-age=31536000; includeSubDomains"
    return headers


def _fill(message: str, **values: str) -> Markup:
    """Fill a message with escaped values, each isolated so that its writing direction stays its own."""
    isolated = {name: Markup("<bdi>{}</bdi>").format(value) for name, value in values.items()}
    return Markup.escape(message).format(**isolated)


def _tile(provider_name: str) -> Mapping[str, str | int]:
    """Stand in for a logo, which would be somebody else's: an initial on a colour that stays the same."""
    initial = next((character for character in provider_name if character.isalnum()), "·")
    return {"initial": initial.upper()[:1], "tint": zlib.crc32(provider_name.encode("utf-8", "replace")) % _TINTS}


def _shown(text: str, longest: int) -> str:
    """Return *text* on one line, cut to *longest* characters; U+FFFD marks what is invisible or turns text around."""
    line = " ".join(text[: longest * 2].split())
    cut = line if len(line) <= longest else line[: longest - 1] + "…"
    return "".join("\N{REPLACEMENT CHARACTER}" if _unprintable(character) else character for character in cut)


def _shown_id(identifier: str | None) -> str | None:
    """Shorten in the middle: identifiers often differ at the end."""
    if identifier is None:
        return None
    if len(identifier) <= _ID:
        return _shown(identifier, _ID)
    half = _ID // 2
    return f"{_shown(identifier[:half], half)}…{_shown(identifier[-half:], half)}"


def _unprintable(character: str) -> bool:
    # Cc and Cf hold controls and direction overrides; a lone surrogate (Cs) could not even be encoded.
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in _JOINERS

"""The connect pages as text: what they say, that hostile text stays text, and the headers that guard them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from broker.web import pages as module
from broker.web.pages import OwnerLine, Page, Pages, ScopeLine

HOSTILE = '"><script>alert(1)</script>{{ 7 * 7 }}<img src=x onerror=alert(1)>\u202e' + "x" * 10_000
LANGUAGES = sorted(file.stem for file in (Path(module.__file__).parent / "messages").glob("*.toml"))
FORMS = ("confirm", "proceed")
# fmt: off
CODES = {
    "account_mismatch", "missing_refresh_token", "provider_denied", "access_denied", "authorization_state_expired",
    "link_used", "link_unknown", "browser_mismatch", "connection_could_not_be_verified", "invalid_connect_code",
    "authorization_code_exchange_error", "auth_method_mismatch", "concurrent_request",
    "connected_account_limit_reached", "connected_account_not_found", "installation_failed",
    "invalid_authorization_url", "invalid_client_id", "invalid_data_integration", "missing_access_token",
    "missing_code", "multiple_connections_unavailable", "provider_error", "reauthorization_needed", "target_deleted",
    "unexpected_response_format", "provider_unavailable", "provider_misconfigured", "rate_limit_exceeded",
    "cross_site_request", "invalid_request", "store_unavailable",
}
# fmt: on


class Elements(HTMLParser):
    """Collects the elements of a document, with their attributes, and the text that people see."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.found: list[tuple[str, Mapping[str, str | None]]] = []
        self.text = ""
        self.feed(page.body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:  # inside of script and style
            self.text += data

    def named(self, tag: str) -> list[Mapping[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def confirm(
    pages: Pages,
    *,
    provider_name: str = "GitHub",
    owner: OwnerLine | None = None,
    purpose: str | None = "Lists your repositories",
    scopes: tuple[ScopeLine, ...] = (ScopeLine("repo", "See your repositories", "read"),),
    reauthorize: bool = False,
) -> Page:
    return pages.confirm(
        provider_name=provider_name,
        owner=owner or OwnerLine("alice", "acme"),
        purpose=purpose,
        scopes=scopes,
        action="/connect/here",
        reauthorize=reauthorize,
        expires_in_minutes=10,
    )


def all_pages(pages: Pages) -> dict[str, Page]:
    return {
        "confirm": confirm(pages),
        "proceed": pages.proceed(provider_name="GitHub", action="/connect/here"),
        "finished": pages.finished(provider_name="GitHub"),
        "failed": pages.failed(code="link_used", request_id="req_1"),
        "redirecting": pages.redirecting(),
        "development": pages.development(title="Running", facts=[("API", "127.0.0.1")], links=[("Connect", "/go")]),
    }


PAGES = all_pages(Pages(secure=True))


@pytest.fixture
def pages() -> Pages:
    return Pages(secure=True)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_private_and_unframeable(name: str) -> None:
    """No page is stored, sniffed, framed or told apart by Referer; nothing from elsewhere loads."""
    headers = PAGES[name].headers

    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'", "img-src data:"} <= set(policy)
    assert not any("unsafe" in directive or "http" in directive for directive in policy)


@pytest.mark.parametrize("name", PAGES)
def test_no_page_severs_its_opener_or_its_redirect(name: str) -> None:
    """A Cross-Origin-Opener-Policy would cost the widget its tab, form-action the way to the provider."""
    assert "Cross-Origin-Opener-Policy" not in PAGES[name].headers
    assert "form-action" not in PAGES[name].headers["Content-Security-Policy"]


@pytest.mark.parametrize("name", PAGES)
def test_only_pages_with_a_form_send_a_referrer_and_only_to_ourselves(name: str) -> None:
    """Under no-referrer the form would post `Origin: null`, which the server refuses."""
    expected = "same-origin" if name in FORMS else "no-referrer"

    assert PAGES[name].headers["Referrer-Policy"] == expected


@pytest.mark.parametrize("name", PAGES)
def test_the_policy_allows_a_script_only_where_there_is_one(name: str) -> None:
    """Styles and scripts carry the nonce of the policy; a page without script may run none."""
    page = PAGES[name]
    nonces = {element.get("nonce") for tag in ("style", "script") for element in Elements(page).named(tag)}
    nonce = nonces.pop()

    assert nonce
    assert not nonces
    assert f"style-src 'nonce-{nonce}'" in page.headers["Content-Security-Policy"]
    assert (f"script-src 'nonce-{nonce}'" in page.headers["Content-Security-Policy"]) == (name in FORMS)
    assert len(Elements(page).named("script")) == (name in FORMS)


def test_nonces_are_never_reused(pages: Pages) -> None:
    """Two answers of one page have different nonces, each from the randomness given."""
    assert len({pages.redirecting().headers["Content-Security-Policy"] for _ in range(20)}) == 20
    assert b'nonce="fixed-16"' in Pages(secure=True, random=lambda size: f"fixed-{size}").redirecting().body


def test_strict_transport_security_is_for_https_only() -> None:
    """A development server on http must not lock its host name to https for a year."""
    plain = Pages(secure=False).redirecting().headers

    assert "Strict-Transport-Security" not in plain
    assert PAGES["redirecting"].headers["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"


@pytest.mark.parametrize("name", PAGES)
def test_pages_refer_to_nothing_outside_themselves(name: str) -> None:
    """No address in a page leads to another host, and no element carries inline style or handlers."""
    for tag, attributes in Elements(PAGES[name]).found:
        for attribute, value in attributes.items():
            assert attribute not in ("style", "srcset")
            assert not attribute.startswith("on")
            if attribute in ("src", "href", "action"):
                assert re.match(r"/[a-z]|data:image/svg", value or ""), (tag, value)


@pytest.mark.parametrize("name", PAGES)
def test_pages_have_one_heading_a_language_and_a_title(name: str) -> None:
    """What assistive technology needs first is there once."""
    elements = Elements(PAGES[name])

    assert len(elements.named("h1")) == len(elements.named("main")) == len(elements.named("title")) == 1
    assert elements.named("html") == [{"lang": "en", "dir": "ltr"}]


def test_confirmation_names_whose_account_becomes_whose(pages: Pages) -> None:
    """Provider, user, organization, purpose and permissions are read out, and the form posts to where it should."""
    elements = Elements(confirm(pages))

    for text in ("GitHub", "alice", "acme", "Lists your repositories", "See your repositories", "Reads", "10 min"):
        assert text in elements.text
    assert "Continue only if you started this yourself" in elements.text
    assert elements.named("form") == [{"method": "post", "action": "/connect/here"}]


def test_confirmation_leaves_out_what_is_not_given(pages: Pages) -> None:
    """Without organization, purpose and scopes there are no empty headings."""
    text = Elements(confirm(pages, owner=OwnerLine("alice"), purpose=None, scopes=())).text

    assert "Organization" not in text
    assert "What it is for" not in text
    assert "What it may do" not in text


def test_renewal_is_called_renewal(pages: Pages) -> None:
    """Whoever renews a connection is not asked to make one."""
    assert "Renew access to your GitHub account?" in Elements(confirm(pages, reauthorize=True)).text
    assert "Renew" not in Elements(confirm(pages)).text


def test_many_permissions_fold_but_none_is_lost(pages: Pages) -> None:
    """The first six are shown, the others unfold."""
    scopes = tuple(ScopeLine(f"scope_{n}", f"Do thing {n}", "write") for n in range(20))
    page = confirm(pages, scopes=scopes)
    shown, _, folded = Elements(page).text.partition("More permissions (14)")

    assert re.findall(r"scope_(\d+)", shown) == [str(n) for n in range(6)]
    assert re.findall(r"scope_(\d+)", folded) == [str(n) for n in range(6, 20)]


@pytest.mark.parametrize("name", ["confirm", "proceed", "finished", "failed", "development"])
def test_hostile_text_stays_text(pages: Pages, name: str) -> None:
    """Markup is escaped, template syntax is not run, direction overrides are made visible, length is cut."""
    page = {
        "confirm": lambda: confirm(
            pages,
            provider_name=HOSTILE,
            owner=OwnerLine(HOSTILE, HOSTILE),
            purpose=HOSTILE,
            scopes=(ScopeLine(HOSTILE, HOSTILE, "admin"),),
        ),
        "proceed": lambda: pages.proceed(provider_name=HOSTILE, action=HOSTILE),
        "finished": lambda: pages.finished(provider_name=HOSTILE),
        "failed": lambda: pages.failed(code=HOSTILE, request_id=HOSTILE),
        "development": lambda: pages.development(title=HOSTILE, facts=[(HOSTILE, "")], links=[(HOSTILE, HOSTILE)]),
    }[name]()
    elements = Elements(page)

    assert not elements.named("img")
    assert len(elements.named("script")) == (name in FORMS)
    assert not any("onerror" in attributes for _, attributes in elements.found)
    assert "{{ 7 * 7 }}" in elements.text
    if name != "development":  # its text is the developer's own
        assert "\u202e" not in elements.text
        assert "x" * 600 not in elements.text


def test_invisible_characters_are_marked_except_joiners(pages: Pages) -> None:
    """Controls, overrides, zero-width spaces and lone surrogates show as U+FFFD; Persian and emoji keep joiners."""
    odd = "a\x00b\u202ec\u200bd\ud800e"

    assert "a\ufffdb\ufffdc\ufffdd\ufffde" in Elements(confirm(pages, owner=OwnerLine(odd))).text
    assert "می\u200cخواهم" in Elements(confirm(pages, owner=OwnerLine("می\u200cخواهم"))).text


def test_long_identifiers_keep_both_ends(pages: Pages) -> None:
    """Two identifiers that differ at the end stay different when shortened."""
    text = Elements(confirm(pages, owner=OwnerLine("tenant-" + "0" * 300 + "-alice@example.com"))).text

    assert "tenant-000" in text
    assert "000-alice@example.com" in text
    assert "0" * 100 not in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_code_has_words_in_every_language(language: str) -> None:
    """Each code says what happened and what to do, in words of its own, and answers 400."""
    pages = Pages(secure=True, language=language)
    general = Elements(pages.failed(code="surely_not_a_code", request_id=None))
    for code in CODES:
        page = pages.failed(code=code, request_id="req_7")
        text = Elements(page).text

        assert page.status == 400
        assert code in text
        assert "req_7" in text
        assert general.text not in text
        assert "surely" not in text
    assert pages._text["failed"]["codes"].keys() == CODES  # a text without a code would never be read


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_can_be_said_in_every_language(language: str) -> None:
    """A missing message fails here, since nothing undefined renders."""
    pages = Pages(secure=True, language=language)

    assert all(page.body for page in all_pages(pages).values())
    assert all(
        step in pages._text["failed"]["next"]
        for step in [failure["next"] for failure in pages._text["failed"]["codes"].values()]
    )
    assert pages.finished(provider_name=None).body


def test_unknown_codes_are_not_repeated(pages: Pages) -> None:
    """What is not one of our codes may be a provider's text, and gets the general words instead."""
    text = Elements(pages.failed(code="Call +1 555 0100 to verify your account", request_id=None)).text

    assert "555" not in text
    assert "The account was not connected" in text
    assert "Reference" not in text


def test_a_provider_keeps_its_tile(pages: Pages) -> None:
    """The same name gets the same initial and colour on every page."""
    tiles = [
        re.findall(rb'<span class="tile tint-\d">.</span>', page.body)
        for page in (confirm(pages), pages.proceed(provider_name="GitHub", action="/x"))
    ]

    assert tiles[0] == tiles[1] != []

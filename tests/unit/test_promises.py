"""tests/README.md says which test holds which promise, and cannot say anything else."""

from __future__ import annotations

import re

from tests.promises import CASES, PAGE, REFRESH, TESTS, cases, claims, written

PROMISED = re.compile(r"^\| [1-7] \| .+ \| (.+) \|$", re.MULTILINE)


def test_every_case_of_the_refresh_engine_has_a_test_that_names_it():
    """A case without a test is a promise without anything behind it."""
    assert {number for number in REFRESH if number not in claims()} == set()


def test_every_case_that_a_test_names_is_in_the_table():
    """Whoever writes a test for a case gives the case its row."""
    assert claims().keys() == CASES.keys()


def test_page_is_what_the_tests_say():
    """Run `python -m tests.promises` to write the table anew."""
    page = PAGE.read_text(encoding="utf-8")

    assert written(page, cases()) == page


def test_every_promise_names_its_cases_and_each_is_held():
    """The seven promises stand there with cases that tests hold."""
    promises = PROMISED.findall(PAGE.read_text(encoding="utf-8"))

    assert len(promises) == 7
    for named in promises:
        numbers = {int(digits) for digits in re.findall(r"T-(\d+)", named)}
        assert numbers
        assert numbers <= claims().keys()


def test_every_file_that_the_page_names_exists():
    """Folders, judges and tests are where the page says."""
    named = re.findall(r"`([\w./-]+(?:/|\.py))(?:::\w+)?`", PAGE.read_text(encoding="utf-8"))

    assert named
    assert [name for name in named if not (TESTS / name).exists()] == []

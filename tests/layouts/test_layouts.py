"""The page of layouts says what comes of each of them: all are built and tried."""

import difflib

from tests.layouts.page import PAGE, PARTS, page


def test_the_page_says_what_comes_of_each_layout():
    written, found = PAGE.read_text(encoding="utf-8").splitlines(), page().splitlines()
    changes = "\n".join(difflib.unified_diff(written, found, "docs/layouts.md", "what comes of it", lineterm="", n=0))
    assert not changes, f"{changes}\nIf that is right: python -m tests.layouts"


def test_there_are_enough_of_every_kind():
    text = PAGE.read_text(encoding="utf-8")
    assert sum(len(layouts) for _, layouts in PARTS.values()) >= 30
    for word in ("taken", "warned", "refused, 2", "refused, 3"):
        assert text.count(f"| {word} |") >= 5, word

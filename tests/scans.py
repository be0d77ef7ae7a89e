"""Real scans that tests are tried on where they are; no test needs them."""

import os
from pathlib import Path

import pytest

SCANS = Path(os.environ.get("MEDSEG_DIFF_SCANS") or Path(__file__).parents[2] / "shared" / "data")


def needs_scans(*parts: str) -> list[pytest.MarkDecorator]:
    """Marks of tests that read the folder SCANS/PARTS."""
    missing = not SCANS.joinpath(*parts).is_dir()
    return [pytest.mark.real, pytest.mark.skipif(missing, reason="no real scans: MEDSEG_DIFF_SCANS names their folder")]


def with_scans(*parts: str):
    """A decorator of one such test."""

    def mark(test):
        for each in needs_scans(*parts):
            test = each(test)
        return test

    return mark

"""A page is one file whose policy lets its own scripts run and nothing else."""

import base64
import hashlib
import re

import pytest

from medseg_diff.reporting.page.document import TABLE, write_page

FACTS = {
    "title": "<script>alert(1)</script>",
    "lead": "& more",
    "warnings": ["<img src=x onerror=alert(1)>"],
    "tiles": [],
    "one": "case",
    "columns": ["case"],
    "rows": [],
    "charts": [],
    "gallery": None,
    "gallery_title": "",
    "metrics": [],
    "citations": [],
}


@pytest.fixture
def page(tmp_path):
    write_page(tmp_path / "report.html", "cohort.html", scripts=(TABLE,), **FACTS)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def checksum(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_names_every_script_and_the_style(page):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    policy = policy.replace("&#39;", "'")
    scripts, styles = re.findall(r"<script>(.*?)</script>", page, re.S), re.findall(r"<style>(.*?)</style>", page, re.S)
    assert len(scripts) == len(styles) == 1
    assert all(checksum(text) in policy for text in scripts + styles)
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_names_and_warnings_are_text(page):
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_same_facts_give_the_same_bytes(page, tmp_path):
    write_page(tmp_path / "again.html", "cohort.html", scripts=(TABLE,), **FACTS)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page

"""`report`: pages of finished results, opened in a browser where there is one."""

import json
import re
import shutil

import numpy as np
import pytest

from medseg_diff import evaluate, report, segment
from medseg_diff.data.results import read_result
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import ImageError, ManifestError, UsageError
from medseg_diff.reporting.page.scene import scene_of
from medseg_diff.tasks.apply.anomaly import anomaly
from tests.made import TUMOUR, Study

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def segmented(steep, tmp_path_factory):
    """Two cases, evaluated, with their pages."""
    out = tmp_path_factory.mktemp("pages") / "out"
    segment(
        data=steep.table, split="test", model=steep.folder, out=out, members=2, steps=1, save_members=True, device="cpu"
    )
    evaluate(out, steep.table, split="test", runs=steep.runs, mlflow=False, figure=False)
    report(out, data=steep.table, runs=steep.runs)
    return out


@pytest.fixture(scope="module")
def mapped(untrained_anomaly, tmp_path_factory):
    """One anomaly map with its page."""
    known = untrained_anomaly
    out = tmp_path_factory.mktemp("pages") / "out"
    anomaly(data=known.table, split="test", model=known.folder, out=out, device="cpu")
    report(out, data=known.table)
    return out


def read(path):
    return path.read_text(encoding="utf-8")


def test_every_case_has_its_page_and_the_folder_one_for_all(segmented):
    cases = sorted(path.parent for path in segmented.glob("*/case.json"))
    assert len(cases) >= 2
    cohort = read(segmented / "report.html")
    for case in cases:
        page = read(case / "report.html")
        assert f'href="{case.name}/report.html"' in cohort
        for words in ("Research use only", "Volumes", "Slices to review", "Members side by side", "@article{", "Dice"):
            assert words in page, words
    assert "Reliability" in cohort and "Worst first, by Dice" in cohort


def test_the_page_of_all_lies_with_the_run_that_made_the_results(segmented, steep):
    kept = steep.folder / "evaluations" / "phantom-test" / "report.html"
    assert kept.read_bytes() == (segmented / "report.html").read_bytes()


def test_an_anomaly_page_says_its_threshold_lesions_and_checks(mapped):
    page = read(next(mapped.glob("*/report.html")))
    for words in ("Threshold", "Quality checks", "round trip", "healthy", "wolleb2022anomaly"):
        assert words in page, words


def test_every_picture_has_words_and_nothing_is_fetched(segmented, mapped):
    for path in (*segmented.rglob("report.html"), *mapped.rglob("report.html")):
        page = re.sub(r"<script.*?</script>", "", read(path), flags=re.S)
        pictures = re.findall(r"<img [^>]+>", page)
        assert all(re.search(r'alt="[^"]{20,}"', each) for each in pictures)
        sources = re.findall(r'(?:src|srcset|href)="([^"]+)"', page)
        assert all(each.startswith(("data:", "#")) or each.endswith("/report.html") for each in sources)


def test_the_same_folder_gives_the_same_pages(segmented, steep):
    before = {path: path.read_bytes() for path in segmented.rglob("report.html")}
    report(segmented, data=steep.table)
    assert {path: path.read_bytes() for path in segmented.rglob("report.html")} == before


def test_one_case_without_its_scan(segmented, tmp_path):
    case = next(segmented.glob("*/case.json")).parent
    shutil.copytree(case, tmp_path / "out" / case.name)
    assert report(tmp_path / "out" / case.name) == tmp_path / "out" / case.name / "report.html"
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_case_with_a_page_can_be_made_anew(segmented, steep, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(segmented, out)
    segment(
        data=steep.table, split="test", model=steep.folder, out=out, members=1, steps=1, overwrite=True, device="cpu"
    )
    cases = [path.parent for path in sorted(out.glob("*/case.json"))]
    assert len(cases) >= 2 and not list(out.glob("*/report.html"))  # they were of the results that are gone
    (cases[0] / "case.json").unlink()
    (cases[0] / "report.html").write_text("a page of somebody's")
    with pytest.raises(UsageError, match=r"holds (mask.nii.gz|.*), which no case.json lists"):
        segment(data=steep.table, model=steep.folder, out=out, members=1, steps=1, overwrite=True, device="cpu")


def test_the_folder_one_stands_in_has_its_name(segmented, tmp_path, monkeypatch):
    case = next(segmented.glob("*/case.json")).parent
    shutil.copytree(segmented, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out" / case.name)
    assert f"<title>{case.name}" in read(report("."))


def test_any_number_of_regions_has_colours(tmp_path):
    labels = np.where(TUMOUR, 1 + np.arange(TUMOUR.size).reshape(TUMOUR.shape) % 6, 0)
    regions = {f"region_{number}": list(range(number, 7)) for number in range(1, 7)}
    study = Study(tmp_path).add("a", labels=labels).predict("a", labels, regions=regions)
    facts = json.loads((study.predictions / "a" / "case.json").read_text())
    result = read_result(study.predictions / "a", "a")
    overlays = scene_of(result, read_manifest(study.table).cases[0]).overlays
    assert facts["regions"].keys() == result.regions.keys()
    assert [len(each.colours) for each in overlays if each.of_labels] == [6, 6]


def test_a_scan_that_lacks_a_channel_is_found_again(segmented, steep, tmp_path):
    case = next(segmented.glob("*/case.json")).parent
    folder, scan = tmp_path / "out" / case.name, tmp_path / "scan"
    shutil.copytree(case, folder)
    shutil.copytree(steep.table.parent / case.name, scan)
    (scan / "t2.nii.gz").unlink()
    with pytest.raises(ImageError, match="t2"):
        report(folder, volumes=[str(scan)])
    facts = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps(facts | {"missing_channels": ["t2"]}))
    assert "data:image/png" in read(report(folder, volumes=[str(scan)]))


def test_what_holds_no_results_is_refused(segmented, tmp_path):
    with pytest.raises(UsageError, match="holds neither finished results"):
        report(tmp_path)
    (tmp_path / "t.csv").write_text("case,flair\nother,other.nii.gz\n")
    (tmp_path / "other.nii.gz").touch()
    with pytest.raises(ManifestError, match="names none of the"):
        report(segmented, data=tmp_path / "t.csv")
    with pytest.raises(UsageError, match="--volume is one scan"):
        report(segmented, volumes=["scan"])


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    graphics = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=graphics)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """f(path): the page opened; at the end nothing was said on the console, and nobody was asked for anything."""
    said, asked = [], []
    tab = browser.new_context(viewport={"width": 900, "height": 700}).new_page()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))

    def visited(path):
        tab.goto(path.as_uri())
        return tab

    yield visited
    tab.context.close()
    assert said == [] and [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_overlays_toggle_in_a_browser(segmented, visit):
    tab = visit(next(segmented.glob("*/report.html")))
    tab.wait_for_selector("html[data-ready=yes]", timeout=60_000)
    canvas = tab.locator("#canvas")
    boxes = tab.locator("[data-overlay] input[type=checkbox]")
    before = canvas.screenshot()
    boxes.nth(2).check()  # the probability
    tab.wait_for_timeout(1500)
    assert canvas.screenshot() != before
    assert "mm" in tab.locator("#where").inner_text()


def test_the_table_sorts_in_a_browser(segmented, visit):
    tab = visit(segmented / "report.html")
    heading = tab.locator("th", has_text="volume (ml)").first
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    volumes = [float(each) for each in tab.locator("table.sortable tbody td:nth-child(2)").all_inner_texts()]
    assert volumes == sorted(volumes)


def test_inside_another_page_it_leads_nowhere(segmented, visit, tmp_path):
    (tmp_path / "report.html").write_bytes((segmented / "report.html").read_bytes())
    (tmp_path / "pane.html").write_text("<iframe src='report.html'></iframe>")
    pane = visit(tmp_path / "pane.html").frame_locator("iframe")
    assert pane.locator("table.sortable tbody tr").count() >= 2 and pane.locator("table.sortable tbody a").count() == 0
    alone = visit(segmented / "report.html")
    assert alone.locator("table.sortable tbody a").count() >= 2

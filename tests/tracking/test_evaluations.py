"""An evaluation joins the run whose weights made the predictions, and no other."""

import json

import pytest

from medseg_diff.run import create_run
from medseg_diff.tracking.attaching import attach_to_run
from medseg_diff.tracking.evaluations import recorded

SUMMARY = {"data": "cases", "split": "test", "metrics": {"dice": {"value": 0.5}}}


@pytest.fixture
def place(tmp_path):
    """A run with two networks, and predictions that it made, evaluated."""
    run = create_run(tmp_path / "runs" / "study" / "one", task="anomaly", recipe="tiny", settings="task: anomaly\n")
    for which in ("denoiser", "classifier"):
        run.weights(which).write_bytes(which.encode())
    run.seal()
    run.note(finished=True, ended=1.0)
    (tmp_path / "out" / "c1").mkdir(parents=True)
    (tmp_path / "out" / "per_case.csv").write_text("case,dice\nc1,0.5\n")
    return run, tmp_path / "out", tmp_path / "runs"


def digest(run):
    lines = (run.folder / "SHA256SUMS").read_text().splitlines()
    return next(line.split()[0] for line in lines if line.endswith("denoiser.safetensors"))


def attached(place, model, sha256, **facts):
    _, out, runs = place
    (out / "c1" / "case.json").write_text(json.dumps({"model": model, "sha256": sha256} | facts))
    return attach_to_run(SUMMARY, out / "per_case.csv", out, runs=runs)


def test_the_run_is_known_by_name_and_digest(place):
    run, _, _ = place
    assert attached(place, "one", digest(run)) == run
    assert [each.name for each in recorded(run)] == ["cases-test"]


def test_other_weights_are_not_mixed_up(place):
    run, _, _ = place
    for model, sha256 in (("two", digest(run)), ("one", "0" * 64), ("one", None), (None, None)):
        assert attached(place, model, sha256) is None
    assert recorded(run) == []


def test_masks_of_another_program_that_it_refined_are_not_its_own(place):
    run, _, _ = place
    assert attached(place, "one", digest(run), strength=0.5) is None and recorded(run) == []
    assert attached(place, "one", digest(run), strength=None) == run


def test_what_has_no_case_json_belongs_to_nobody(place):
    _, out, runs = place
    assert attach_to_run(SUMMARY, out / "per_case.csv", out, runs=runs) is None
    (out / "c1" / "case.json").write_text("not json")
    assert attach_to_run(SUMMARY, out / "per_case.csv", out, runs=runs) is None
    assert attach_to_run(SUMMARY, out / "per_case.csv", out, runs=runs / "nowhere") is None

"""The starter model: what of it lies in the package, when it is used, that this is said, and that it works."""

import logging
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nibabel
import pytest
import torch

import medseg_diff
from medseg_diff import cli
from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.files import read_json
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.trained import find_model, find_models, open_run, task_of_model
from medseg_diff.recipes.warm_start import WarmStart
from medseg_diff.run import create_run, environment
from medseg_diff.runs import MODEL_CARD, STARTER, locate, starter_run
from medseg_diff.training.weights import read_tensors

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "medseg_diff" / STARTER
SMALL = ("--steps", "1", "--members", "1", "--network-batch", "8", "--device", "cpu")


def files():
    return sorted(path for path in FOLDER.rglob("*") if path.is_file())


class TestWhatLiesInThePackage:
    def test_it_is_small_and_nothing_but_what_inference_needs(self):
        names = {path.relative_to(FOLDER).as_posix() for path in files()}
        json = {"run.json", "environment.json", "typicality.json", "calibration.json"}
        assert names == {"recipe.yaml", "SHA256SUMS", MODEL_CARD, "weights/best.safetensors", *json}
        assert sum(path.stat().st_size for path in files()) <= 6e6

    def test_it_passes_the_check_of_a_run_folder_and_its_weights_are_bf16(self):
        run = starter_run()
        assert run.folder == FOLDER and run.facts["task"] == "segment" and run.facts["finished"]
        opened = open_run(run, SegmentationRecipe, device="cpu")
        assert opened.typicality.cases == run.facts["patients"] == 3 and not opened.typicality.phantoms
        stored = read_tensors(run.weights("best"))
        assert {each.dtype for each in stored.values()} == {torch.bfloat16}
        for name, tensor in opened.networks["best"].state_dict().items():
            assert tensor.dtype == torch.float32 and torch.equal(tensor, stored[name].float())

    def test_it_is_of_the_recipe_of_its_name(self):
        recipe = open_run(starter_run(), SegmentationRecipe, device="cpu").recipe
        assert recipe == load_recipe("quick/mask_logits", task="segment")

    def test_nothing_in_it_names_a_machine_its_user_or_its_paths(self):
        for path in files():
            if path.suffix in (".json", ".yaml"):
                assert not re.search(r"(?<![\w.:])[~/]\w*/|[A-Z]:\\\\", path.read_text(encoding="utf-8")), path.name
        assert set(read_json(FOLDER / "environment.json")) <= set(environment())
        assert "/" not in starter_run().facts["data"]

    def test_its_card_says_what_it_learned_from_by_which_licence_and_what_it_is_not_for(self):
        card = (FOLDER / MODEL_CARD).read_text(encoding="utf-8")
        for words in ("three patients", "CC BY 4.0", "Baid", "Menze", "Bakas", "Not for clinical use", "typicality"):
            assert words in card
        assert starter_run().facts["recipe_sha256"] in card

    def test_a_wheel_carries_it(self):
        built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
        assert built["targets"]["wheel"]["packages"] == ["medseg_diff"] and not {"exclude", "only-include"} & set(built)
        if shutil.which("git") and (ROOT / ".git").exists():  # a builder leaves out what git does
            ignored = subprocess.run(["git", "check-ignore", *files()], cwd=ROOT, capture_output=True, text=True)
            assert ignored.stdout == ""


class TestWhenItIsUsed:
    def test_without_a_finished_run_of_segmentation(self, tmp_path, caplog):
        runs = tmp_path / "runs"
        create_run(runs / "unfinished", task="segment", recipe="r", settings="")
        create_run(runs / "other", task="anomaly", recipe="r", settings="").note(finished=True, ended=1.0)
        assert find_models(None, task="segment", runs=runs) == (STARTER, [starter_run()])
        assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING
        for words in ("no finished run for `segment` under runs/", "3 patients", "not for clinical use", MODEL_CARD):
            assert words in caplog.text
        assert "medseg-diff train-seg --data" in caplog.text

    def test_not_where_there_is_one(self, trained, caplog):
        assert find_models(None, task="segment", runs=trained.runs).name == "tiny"
        assert caplog.text == ""

    def test_by_its_name(self, trained, tmp_path, caplog):
        assert find_model(STARTER, task="segment", runs=trained.runs) == starter_run()
        assert "using the starter model, trained on 3 patients" in caplog.text
        assert task_of_model(STARTER, runs=tmp_path) == "segment"
        model = medseg_diff.load_model(STARTER, device="cpu", runs=tmp_path)
        assert repr(model) == "LoadedModel starter for segment, reads t1, t1ce, t2, flair, on cpu"

    def test_a_run_of_ones_own_called_so_comes_first(self, tmp_path):
        own = create_run(tmp_path / STARTER, task="segment", recipe="r", settings="")
        assert locate(Path(STARTER), tmp_path) == own

    def test_it_is_no_model_for_anomaly_maps(self, tmp_path):
        with pytest.raises(UsageError, match="no finished run for `anomaly`"):
            find_model(None, task="anomaly", runs=tmp_path)
        with pytest.raises(CheckpointError, match="starter: is a run for `segment`, not `anomaly`"):
            find_model(STARTER, task="anomaly", runs=tmp_path)

    def test_an_installation_without_it_asks_for_a_training(self, tmp_path, monkeypatch):
        monkeypatch.setattr("medseg_diff.runs.STARTER", "absent")
        with pytest.raises(UsageError, match="Fix: train one"):
            find_model(None, task="segment", runs=tmp_path)

    def test_a_training_can_begin_with_it(self, tmp_path):
        recipe = load_recipe("quick/mask_logits", task="segment")
        network = recipe.parts()["best"]()
        WarmStart.of(STARTER, recipe, runs=tmp_path).fill("best", network, recipe)
        stored = read_tensors(starter_run().weights("best"))
        assert all(torch.equal(each, stored[name].float()) for name, each in network.state_dict().items())


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """medseg-diff WORDS in an empty folder, in this process → (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_a_scan_is_segmented_without_any_training(call, tmp_path):
    medseg_diff.phantom(tmp_path / "scans", cases=1, shape=(32, 32, 32), healthy=0)
    code, out, err = call("segment", "--volume", "scans/phantom_0000", "--out", "results", *SMALL)
    assert code == 0 and "using the starter model" in err and MODEL_CARD in err, err
    results = tmp_path / "results" / "phantom_0000"
    assert out.strip() == "results/phantom_0000"
    facts = read_json(results / "case.json")
    assert facts["model"] == STARTER and facts["recipe"] == "quick-mask_logits" and facts["typicality"]["score"] > 0
    mask, scan = nibabel.load(results / "mask.nii.gz"), nibabel.load(tmp_path / "scans" / "phantom_0000" / "t1.nii.gz")
    assert mask.shape == scan.shape and (mask.affine == scan.affine).all()
    assert (results / "mask_labels.ctbl").is_file()


def test_weights_that_differ_from_their_digest_are_exit_4(call, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "runs" / STARTER)  # one of one's own, then
    weights = tmp_path / "runs" / STARTER / "weights" / "best.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    code, out, err = call("segment", "-q", "--volume", tmp_path, "--model", STARTER, "--out", "results", *SMALL)
    assert (code, out) == (4, "") and "best.safetensors: differs from its checksum" in err

"""The GPU benchmark on a CPU, in miniature, with the libraries blocked that a training machine may lack."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_NEEDED = ("SimpleITK", "mlflow", "pandas", "skimage")
RUN = f"""
import sys, runpy
class Without:  # a finder of modules that does not find some, as where they are not installed
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {NOT_NEEDED!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
sys.argv = ["gpu", "--device", "cpu", "--tiny", "--out", sys.argv[1]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    done = subprocess.run([sys.executable, "-c", RUN, str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "slices per second" in done.stdout
    return json.loads((out / "gpu.json").read_text())


def test_both_recipes_are_timed(result):
    for found in result["recipes"].values():
        assert min(found["training"]["slices_per_second"].values()) > 0
        assert found["sampling"]["seconds_per_volume"] > 0
        assert all(found["forward_slices_per_second"].values())
    papers = result["recipes"]["the paper's"]["sampling"]
    assert papers["extrapolated"] and papers["steps"] == 1000


def test_training_and_sampling_are_a_share_of_what_matrix_products_reach(result):
    limit = result["matmul_limit"]
    assert limit["precision"] == "bf16" and limit["matrix"] == 512 and limit["tflop_per_second"] > 0
    for found in result["recipes"].values():
        training, work = found["training"], found["gflop_of_a_slice"]
        per_second = training["slices_per_second"]["compute"] * work["trained"] / 1000
        assert training["tflop_per_second"] == pytest.approx(per_second, rel=0.02, abs=1e-4)
        for kind in ("training", "sampling"):
            share = found[kind]["tflop_per_second"] / limit["tflop_per_second"]
            assert 0 < found[kind]["share_of_limit"] < 1
            assert found[kind]["share_of_limit"] == pytest.approx(share, rel=0.05, abs=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_samples_do_not_depend_on_company(result, precision):
    check = result["recipes"]["default"]["invariance"][precision]
    assert check["byte_equal"] == {"other_order": True, "shard": True}
    assert check["batch_1_against_32"]["kept"]
    assert check["probability_deviation"] > 0.05  # the network must say something, or all of this is empty


def test_versions_and_device_are_written(result):
    assert result["machine"]["device"] == "cpu"
    assert {"torch", "medseg_diff", "python"} <= set(result["machine"]["versions"])

"""One real MLflow store on disk for all tests here: making the database takes seconds, using it does not."""

import csv
import json

import pytest

from medseg_diff.run import create_run
from medseg_diff.tracking.store import make_client

RECIPE = """task: segment
channels: [t1, flair]
network: {kind: unet, width: 8}
training: {steps: 20, learning_rate: 0.001}
"""
COLUMNS = ("case", "patient", "split", "region", "reference_ml", "dice", "hd95_mm")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder of runs whose database is there already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder = tmp_path_factory.mktemp("tracking") / "runs"
        make_client(folder).search_experiments()
        yield folder


@pytest.fixture
def client(runs):
    return make_client(runs)


@pytest.fixture
def make_run(runs, request):
    """make_run("a") is a finished run folder with numbers, weights, a trajectory and a curve."""
    from PIL import Image

    def make(name, *, recipe=RECIPE, finished=True):
        run = create_run(runs / f"{request.node.name[:40]}-{name}", task="segment", recipe="tiny", settings=recipe)
        run.weights("best").write_bytes(b"weights of " + name.encode())
        for step in (10, 20):
            run.log(step, {"loss": 1 / step, "val_dice": step / 100})
        (run.figures / "trajectories").mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(run.figures / "trajectories" / "validation-0000010.png")
        Image.new("RGB", (8, 8), "blue").save(run.figures / "training.png")
        run.seal()
        run.note(data="brats/cases", data_digest="0123456789abcdef", started=1000.0)
        if finished:
            run.note(finished=True, ended=1060.0, best_step=20, best_val_dice=0.2)
        return run

    return make


@pytest.fixture
def evaluated(tmp_path):
    """evaluated(dice) are a summary and the path of a table of four cases, as `evaluate` makes them."""

    def make(dice, *, split="test", name="e"):
        folder = tmp_path / f"{name}-{dice}"
        folder.mkdir()
        found = {"value": dice, "low": None, "high": None, "unit": "1", "over": "cases", "cases": 4}
        metrics = {"dice": found, "hd95_mm": found | {"value": None}}
        summary = {"schema": 1, "task": "segment", "data": "cases", "split": split, "cases": 4, "metrics": metrics}
        (folder / "metrics.json").write_text(json.dumps(summary))
        with (folder / "per_case.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for number in range(4):
                shift = (number - 1.5) / 100
                writer.writerow([f"00{number}", f"p{number}", split, "tumour", "12", dice + shift, ""])
        return summary, folder / "per_case.csv"

    return make

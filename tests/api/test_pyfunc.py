"""A registered run loads in MLflow as what it is, and does to a scan what the verb does."""

import json

import pytest

from medseg_diff import segment
from medseg_diff.api import pyfunc
from medseg_diff.errors import CheckpointError
from medseg_diff.run import Run, create_run
from medseg_diff.tracking.registry import _write_model


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    """The folder of a run as it is registered."""
    run, folder = Run(trained.folder), tmp_path_factory.mktemp("model") / "model"
    files = [*run.verified(), *(run.folder / name for name in ("run.json", "environment.json", "SHA256SUMS"))]
    _write_model(run, files, folder)
    return folder


def test_it_says_what_it_takes_and_holds_nothing_pickled(model):
    from mlflow.models import Model

    found = Model.load(str(model))
    assert found.signature.inputs.input_names() == ["volume"] and found.metadata["task"] == "segment"
    assert found.signature.outputs.input_names() == ["row", "case", "folder"]
    assert [param.name for param in found.signature.params.params] == ["out", "seed", "device"]
    assert {path.suffix for path in model.rglob("*") if path.is_file()} <= {
        "", ".yaml", ".txt", ".json", ".safetensors"
    }  # fmt: skip


def test_a_scan_is_segmented_as_the_verb_does_it(model, trained, tmp_path):
    import mlflow.pyfunc
    from pandas import DataFrame

    scan = trained.table.parent / "phantom_0000"
    loaded = mlflow.pyfunc.load_model(str(model))
    params = {"out": str(tmp_path / "served"), "device": "cpu", "seed": 3}
    rows = loaded.predict(DataFrame({"volume": [str(scan)]}), params=params).to_dict("records")
    assert rows == [{"row": 0, "case": "phantom_0000", "folder": str(tmp_path / "served" / "phantom_0000")}]
    segment(scan, model=trained.folder, out=tmp_path / "own", device="cpu", seed=3)
    served, own = (tmp_path / name / "phantom_0000" / "probability.nii.gz" for name in ("served", "own"))
    assert served.read_bytes() == own.read_bytes()


def test_files_that_were_changed_are_refused(model, tmp_path):
    import shutil

    run = Run(shutil.copytree(model / "data" / "run", tmp_path / "run"))
    with run.weights("best").open("ab") as file:
        file.write(b"!")
    with pytest.raises(CheckpointError, match=r"best.safetensors: differs from its checksum"):
        pyfunc._load_pyfunc(str(run.folder))


def test_orders_of_scans_become_the_words_of_synthesise(tmp_path, monkeypatch):
    from pandas import DataFrame

    run, asked = create_run(tmp_path / "run", task="synthesise", recipe="tiny", settings="task: synthesise\n"), []

    def synthesise(out, **words):
        asked.append((out, words))
        return [tmp_path / "synthetic_0000", tmp_path / "synthetic_0001"]

    monkeypatch.setattr(pyfunc, "synthesise", synthesise)
    table = DataFrame({"number": [2, None], "covariates": ["age_years=63 sex=F", None]})
    rows = pyfunc.PyfuncModel(run).predict(table, {"out": "o"}).to_dict("records")
    assert [row["row"] for row in rows] == [0, 0, 1, 1] and rows[1]["case"] == "synthetic_0001"
    common = {"model": run.folder, "seed": 0, "device": "auto"}
    assert asked == [("o", common | {"number": 2, "covariates": ["age_years=63", "sex=F"]}), ("o", common)]
    assert json.dumps(rows)

"""What a person reads of a run in MLflow: description, tags and the few settings that stand above its pictures."""

import json

import pytest

from medseg_diff.run import Run
from medseg_diff.studies import FoldStudy
from medseg_diff.tracking import attach_page, attach_to_run, complete, complete_study
from medseg_diff.tracking.entry import NOTE
from medseg_diff.tracking.store import read_ticket


def page_of(client, run_id):
    return client.get_run(run_id).data.tags[NOTE]


def test_the_description_says_recipe_data_result_and_shows_a_picture(runs, client, make_run):
    run = make_run("described")
    run.note(cases={"train": 3, "val": 1}, patients=4, overrides=["network.width=8"], device="cpu", precision="fp32")
    run_id = complete(run, runs).run_id
    text = page_of(client, run_id)
    first, second, *_ = text.split("\n\n")
    assert first == "**segment** with the recipe `tiny`; **result**: best val/dice 0.2"
    assert second == "**Data** brats/cases: 3 train, 1 val cases of 4 patients. Trained on cpu (fp32), 60 s."
    assert f"Use it: `medseg-diff segment --model {run.name} --volume PATIENT_FOLDER --out results`" in text
    assert f"(get-artifact?path=previews%2Ftrajectory.png&run_uuid={run_id}&version=10)" in text
    assert "`network.width=8`" in text
    assert [file.path for file in client.list_artifacts(run_id, "previews")] == ["previews/trajectory.png"]


def test_a_description_that_a_person_wrote_stays(runs, client, make_run):
    run = make_run("edited")
    run_id = complete(run, runs).run_id
    run.note(best_val_dice=0.9)
    complete(run, runs)
    assert "val/dice 0.9" in page_of(client, run_id)  # ours follows the run
    client.set_tag(run_id, NOTE, "the one for the paper")
    run.note(best_val_dice=0.95)
    complete(run, runs)
    assert page_of(client, run_id) == "the one for the paper"


def test_tags_and_parameters_are_few_and_telling(runs, client, make_run):
    run = make_run("tagged")
    run.note(overrides=["network.width=8"], device="cuda", precision="bf16")
    (run.folder / "environment.json").write_text(json.dumps({"medseg_diff": "9.9", "commit": "c" * 40}))
    told = client.get_run(complete(run, runs).run_id).data
    assert told.params == {
        "recipe": "tiny",
        "network.width": "8",
        "training.steps": "20",
        "training.learning_rate": "0.001",
    }
    shown = {"task": "segment", "recipe": "tiny", "data": "brats/cases", "device": "cuda", "precision": "bf16"}
    shown |= {"medseg_diff.version": "9.9", "mlflow.source.git.commit": "c" * 40}
    assert shown.items() <= told.tags.items()


@pytest.mark.parametrize("chosen", [None, "brain/ours"])
def test_experiments_do_not_collide(runs, client, make_run, monkeypatch, chosen):
    if chosen:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", chosen)
    run_id = complete(make_run(f"experiment-{bool(chosen)}"), runs).run_id
    experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    assert experiment.name == (chosen or "medseg-diff/segment")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"  # no page for prompts


@pytest.fixture
def study(runs, make_run):
    """A study of two folds, both trained."""
    folds = [make_run(f"study/fold_{number}") for number in (1, 2)]
    study = FoldStudy(folds[0].folder.parent)
    study.begin(task="segment", recipe="tiny", recipe_sha256="0", data_digest="0", folds=2)
    study.finish()
    return study


def test_folds_hang_below_their_study_which_says_what_it_is(runs, client, study):
    folds = [complete(study.run(number), runs).run_id for number in (1, 2)]
    parent = complete_study(study, runs)
    assert {client.get_run(fold).data.tags["mlflow.parentRunId"] for fold in folds} == {parent}
    found = client.get_run(parent)
    assert found.info.run_name == study.name and found.info.status == "FINISHED" and found.data.params["folds"] == "2"
    assert "2 times, each without a different part of the patients" in page_of(client, parent)


def predictions_of(runs_of_cases, folder):
    """Results of cases, each made by a run."""
    for number, run in enumerate(runs_of_cases):
        lines = (run.folder / "SHA256SUMS").read_text().splitlines()
        digest = next(line.split()[0] for line in lines if line.endswith("best.safetensors"))
        (folder / f"c{number}").mkdir(parents=True)
        facts = {"model": run.name, "sha256": digest}
        (folder / f"c{number}" / "case.json").write_text(json.dumps(facts))
    return folder


def test_what_all_folds_predicted_is_evaluated_of_the_study_not_of_one_fold(runs, client, study, evaluated):
    complete(study.run(1), runs)
    out = predictions_of([study.run(1), study.run(2)], study.out_of_fold)
    assert attach_to_run(*evaluated(0.8), out, runs=runs) == Run(study.folder)
    assert client.get_run(read_ticket(study.folder).run_id).data.metrics["test/dice"] == 0.8
    assert not (study.run(1).folder / "evaluations").exists()
    alone = predictions_of([study.run(2)] * 2, study.folder / "one")
    assert attach_to_run(*evaluated(0.7), alone, runs=runs) == study.run(2)


def test_figure_and_page_of_an_evaluation_lie_with_its_run(runs, client, make_run, evaluated, tmp_path):
    from PIL import Image

    run = make_run("shown")
    run_id = complete(run, runs).run_id
    out = predictions_of([run], tmp_path / "out")
    summary, per_case = evaluated(0.8)
    Image.new("RGB", (2000, 1000)).save(per_case.with_name("evaluation.png"))
    attach_to_run(summary, per_case, out, runs=runs)

    def listed():
        return {file.path.rpartition("/")[2] for file in client.list_artifacts(run_id, "evaluations/cases-test")}

    assert listed() == {"metrics.json", "evaluation.png"}
    assert "path=previews%2Fevaluation_cases-test.png" in page_of(client, run_id)
    small = client.download_artifacts(run_id, "previews/evaluation_cases-test.png", str(tmp_path))
    with Image.open(small) as image:
        assert image.width <= 520
    assert attach_page(out, runs=runs) is None  # there is none yet
    (out / "report.html").write_text("<h1>here</h1>")
    (out / "metrics.json").write_text(json.dumps(summary))
    assert attach_page(out, runs=runs) == run and "report.html" in listed()
    assert (run.folder / "evaluations" / "cases-test" / "report.html").read_text() == "<h1>here</h1>"
    (run.folder / "report.html").write_text("<h1>run</h1>")
    assert attach_page(run.folder, runs=runs) == run
    assert "report.html" in {file.path for file in client.list_artifacts(run_id)}


def test_settings_that_were_tried_hang_below_their_run_once(runs, client, make_run):
    run = make_run("tuned")
    rows = [
        {"steps": steps, "members": 3, "seconds": 0.5, "values": {"a": {"dice": 0.5, "ged2": None}, "b": {"dice": 0.7}}}
        for steps in (1, 3)
    ]
    (run.folder / "tuned.json").write_text(json.dumps({"table": rows}))
    (run.folder / "sweep.csv").write_text("noise_level,nfe,drift,auroc\n250,12,0.1,0.9\n500,24,,0.8\n")
    run_id = complete(run, runs).run_id
    complete(run, runs)
    experiment = client.get_run(run_id).info.experiment_id
    below = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run_id}'")
    found = {child.info.run_name: (child.data.params, child.data.metrics) for child in below}
    assert len(below) == 4 and {child.info.status for child in below} == {"FINISHED"}
    assert found["tune: 3 steps, 3 members"] == (
        {"steps": "3", "members": "3"},
        {"tune/nfe": 9, "tune/seconds": 0.5, "tune/dice": 0.6},
    )
    assert found["sweep: noise_level 500"] == ({"noise_level": "500"}, {"sweep/nfe": 24, "sweep/auroc": 0.8})

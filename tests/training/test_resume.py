"""A training that is killed goes on to the same bytes; what cannot be gone on with is refused, and says why."""

import csv
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from medseg_diff import cli
from medseg_diff.data.datasets.slices import SliceDataset
from medseg_diff.errors import CheckpointError, Diverged, EnvironmentFault, Preempted, UsageError
from medseg_diff.files import sha256_of
from medseg_diff.reporting import curves
from medseg_diff.run import Run
from medseg_diff.tasks.train import anomaly, segmentation
from medseg_diff.training import checkpoint, job, runner
from medseg_diff.training.checkpoint import POINTER
from medseg_diff.training.denoising import Denoising
from medseg_diff.training.weights import not_finite, read_tensors, save_tensors

SMALL = {
    "2D": ("view={kind: axial_slices, size: [16, 16], smallest_brain: 0.4}",),
    "3D": ("view={kind: patches, size: [16, 16, 16], per_case: 2, margin: 2}",),
}
COMMON = (
    "augmentation={flips: [0, 1]}",  # everything else at its default: every kind of change is drawn
    "network={kind: unet, width: 8, multipliers: [1, 2], blocks: 1, attention: [], heads: 1, groups: 4, dropout: 0.2}",
    "training={steps: 8, batch: 4, accumulate: 2, precision: fp32, validate_every: 4, save_every: 3, warm_up_steps: 2}",
    "validation={slices: 2, members: 1, calibration_slices: 0, trajectories: 0}",
    "sampling={steps: 1, members: 1}",
)
SHORT = "{steps: 8, batch: 4, precision: fp32, validate_every: 4, save_every: 3, warm_up_steps: 2}"
SMALL_ANOMALY = (
    "view.size=[16,16]",
    "network={kind: unet, width: 8, multipliers: [1, 2], blocks: 1, attention: [], heads: 1, groups: 4, classes: 2}",
    "classifier={width: 8, multipliers: [1, 2], blocks: 1, attention: [], head_width: null, groups: 4, pooling: max_mean}",
)
LAST = "checkpoints/segmentation/step_00000008.safetensors"


class Killed(BaseException):
    """What a SIGKILL is here: nothing catches it."""


@pytest.fixture(scope="module")
def place(phantoms, tmp_path_factory):
    """A folder of runs with a small table beside its phantoms, whose prepared cases are shared."""
    folder = tmp_path_factory.mktemp("resume")
    with phantoms.open(newline="") as file:
        rows = list(csv.DictReader(file))[:3]
    for row, split in zip(rows, ("train", "train", "val"), strict=True):
        row["split"] = split
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder, phantoms.parent


@pytest.fixture(autouse=True, scope="module")
def brisk():
    """Every step is logged, so that a cut of metrics.csv shows; what takes seconds and changes nothing is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "LOG_EVERY", 1)
        patch.setattr(segmentation, "say_how_long", lambda *_, **__: None)
        patch.setattr(curves, "training_curves", lambda *_: None)
        yield


def train(place, out, *words, dims="2D", resume=None, data="cases.csv", runs=None):
    folder, root = place
    return segmentation.train_seg(
        folder / data,
        config="quick/phantom",
        out=out,
        overrides=(*SMALL[dims], *COMMON, *words),
        data_root=root,
        device="cpu",
        runs=runs or folder,
        mlflow=False,
        resume=resume,
    )


def contents(run):
    """Weights, their averages, optimiser and metrics, as bytes."""
    names = ("metrics.csv", "weights/best.safetensors", "weights/last.safetensors", LAST)
    return {name: (run.folder / name).read_bytes() for name in names}


def kill_after(monkeypatch, step):
    """The process ends after `step` updates, before anything is done about the last of them."""
    whole = runner.fit

    def short(*arguments, **named):
        for progress in whole(*arguments, **named):
            if progress.step > step:
                raise Killed
            yield progress

    monkeypatch.setattr(runner, "fit", short)


def kill_between_tensors_and_pointer(monkeypatch, step):
    def write_json(path, data):
        if data["mark"]["step"] == step:
            raise Killed
        write(path, data)

    write = checkpoint.write_json
    monkeypatch.setattr(checkpoint, "write_json", write_json)


def kill_before_the_end(monkeypatch, _):
    def finish(*_):
        raise Killed

    monkeypatch.setattr(job, "_finish", finish)


KILLS = {
    "before the first save": (kill_after, 1, 0),
    "long after a save": (kill_after, 5, 4),
    "while saving": (kill_between_tensors_and_pointer, 6, 4),
    "after the last step": (kill_before_the_end, 8, 8),
}


@pytest.fixture(scope="module")
def uninterrupted(place):
    """Runs that nothing stopped, by dimensions; without loader workers. From here on every process has these threads."""
    torch.set_num_threads(torch.get_num_threads())
    return {dims: contents(train(place, place[0] / f"whole-{dims}", dims=dims)) for dims in SMALL}


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dims", SMALL)
def test_killed_and_resumed_is_the_uninterrupted_run(place, uninterrupted, tmp_path, monkeypatch, dims, workers, kill):
    monkeypatch.setattr(
        "medseg_diff.data.datasets.batch.cores", lambda: 4
    )  # or a small machine would be given fewer workers
    how, step, kept = KILLS[kill]
    words = (f"training.workers={workers}",)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        how(patch, step)
        train(place, tmp_path / "run", *words, dims=dims)
    pointer = json.loads((tmp_path / "run/checkpoints/segmentation/latest.json").read_text())
    assert pointer["mark"]["step"] == kept and not Run(tmp_path / "run").facts["finished"]
    run = train(place, tmp_path / "run", *words, dims=dims, resume="must")
    assert run.facts["finished"] and contents(run) == uninterrupted[dims]
    assert len(list((run.folder / "checkpoints/segmentation").iterdir())) == 2


def test_the_break_shows_in_nothing_but_the_log(place, uninterrupted, tmp_path, monkeypatch, caplog):
    """Killed twice; what was logged after the checkpoint is cut, and the second break is at another step."""
    caplog.set_level("INFO")
    for step, resume in ((2, None), (7, "auto")):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, step)
            train(place, tmp_path / "run", resume=resume)
    assert (tmp_path / "run/metrics.csv").read_text().count(",loss,") == 7
    run = train(place, tmp_path / "run", resume="auto")
    assert contents(run) == uninterrupted["2D"]
    assert "segmentation: continuing from step 0 of 8" in caplog.text
    assert "segmentation: continuing from step 6 of 8" in caplog.text
    assert not list(run.folder.rglob(".*"))  # neither lock nor temporary file


@pytest.fixture(scope="module")
def broken_off(place):
    """A run that ended after step 5, with a checkpoint after step 4. Copy it to change it."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 5)
        train(place, place[0] / "broken-off")
    return place[0] / "broken-off"


@pytest.fixture
def copied(broken_off, tmp_path):
    """The same in a folder of runs of its own."""
    shutil.copytree(broken_off, tmp_path / "runs/broken-off")
    return tmp_path / "runs/broken-off"


def test_only_what_is_left_is_estimated(place, copied, monkeypatch):
    asked = []
    monkeypatch.setattr(
        segmentation, "say_how_long", lambda works, *_, **__: asked.extend(work.settings.steps for work in works)
    )
    train(place, copied, resume="must")
    assert asked == [4]


def test_auto_without_out_finds_the_newest_of_the_same_recipe_and_data(place, uninterrupted, copied, caplog):
    caplog.set_level("INFO")
    for name, fact in (("of-other-data", "data_digest"), ("of-another-recipe", "recipe_sha256")):
        shutil.copytree(copied, copied.parent / name)
        Run(copied.parent / name).note(**{fact: "0" * 64, "started": 4e9})
    run = train(place, None, resume="auto", runs=copied.parent)
    assert f"continuing {copied}" in caplog.text
    assert run.folder == copied and contents(run) == uninterrupted["2D"]
    again = train(place, copied, resume="auto")
    assert "broken-off is finished: nothing to do" in caplog.text and contents(again) == contents(run)


def test_auto_finds_it_in_the_folder_of_a_study_too(place, uninterrupted, copied):
    fold = copied.parent / "study/runs/fold"
    fold.parent.mkdir(parents=True)
    copied.rename(fold)
    run = train(place, None, resume="must", runs=copied.parent)
    assert run.folder == fold and contents(run) == uninterrupted["2D"]


def test_auto_says_that_it_begins_anew(place, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(job, "_train", lambda *_: None)
    (tmp_path / "runs").mkdir()
    run = train(place, None, resume="auto", runs=tmp_path / "runs")
    assert f"no unfinished run to resume: {run.folder} is a new run" in caplog.text
    assert train(place, run.folder, resume="auto").folder == run.folder  # killed in the moment of its making
    assert caplog.text.count("is a new run") == 2


def test_a_run_killed_while_it_is_made_is_made_again(place, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_train", lambda *_: None)
    out = tmp_path / "runs" / "slow"
    for missing in ("environment", "write_text"):
        with monkeypatch.context() as patched:

            def killed(*_):
                raise KeyboardInterrupt

            patched.setattr(f"medseg_diff.run.{missing}", killed)
            with pytest.raises(KeyboardInterrupt):
                train(place, out, resume="auto")
        assert out.is_dir() and not (out / "environment.json").exists()
    assert train(place, out, resume="auto").folder == out and (out / "environment.json").is_file()


@pytest.mark.parametrize("out", [None, "empty"])
def test_must_without_a_checkpoint_is_an_error(place, tmp_path, out):
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no (checkpoint|unfinished run)") as caught:
        train(place, tmp_path / out if out else None, resume="must", runs=tmp_path / "runs")
    assert caught.value.exit_code == 4 and "--resume auto" in caught.value.fix
    assert not list((tmp_path / "runs").iterdir())


def test_without_resume_a_run_is_refused_and_resume_is_named(place, copied):
    with pytest.raises(UsageError, match=r"broken-off already exists. Fix: .* --resume auto"):
        train(place, copied)
    (copied.parent / "other").mkdir()
    (copied.parent / "other/letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="other already exists"):
        train(place, copied.parent / "other", resume="auto")


def test_another_recipe_is_refused_and_named(place, copied):
    with pytest.raises(CheckpointError, match=r"another recipe \(training.seed was 0 and is 7\)") as caught:
        train(place, copied, "training.seed=7", resume="auto")
    assert caught.value.exit_code == 4
    (copied / "recipe.yaml").write_text((copied / "recipe.yaml").read_text() + "# a note\n")
    with pytest.raises(CheckpointError, match=r"its recipe.yaml was edited"):
        train(place, copied, resume="must")


def test_other_data_is_refused(place, copied):
    folder, _ = place
    (folder / "other.csv").write_text((folder / "cases.csv").read_text().replace(",train", ",val", 1))
    with pytest.raises(CheckpointError, match="another table of cases") as caught:
        train(place, copied, data="other.csv", resume="must")
    assert caught.value.exit_code == 4


def change(name, **values):
    """A pointer that says something else, and says that it always did."""

    def damage(folder):
        path = folder / POINTER
        said = json.loads(path.read_text())
        said[name] = said[name] | values if isinstance(said[name], dict) else values[name]
        said.pop("digest")
        path.write_text(json.dumps(said | {"digest": checkpoint._digest(said)}))

    return damage


NEWEST = "step_00000004.safetensors"


def flip(folder):
    path = folder / NEWEST
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def poison(folder):
    path = folder / NEWEST
    state = read_tensors(path)
    state["denoiser.average.module.stem.weight"][0] = float("nan")
    save_tensors(state, path)
    change("sha256", sha256=sha256_of(path))(folder)


ROTTEN = {
    "a flipped bit": (flip, r"step_00000004.safetensors: differs from its checksum"),
    "a cut file": (lambda folder: os.truncate(folder / NEWEST, 5000), "differs from its checksum"),
    "no tensors": (lambda folder: (folder / NEWEST).unlink(), "step_00000004.safetensors: is missing"),
    "NaN": (poison, r"holds NaN or infinity in denoiser.average.module.stem.weight"),
    "a changed step": (
        lambda folder: (folder / POINTER).write_text((folder / POINTER).read_text().replace('"step": 4', '"step": 5')),
        "latest.json: differs from its own digest",
    ),
    "no JSON": (lambda folder: (folder / POINTER).write_text("{"), "latest.json: has changed since it was written"),
    "a list": (lambda folder: (folder / POINTER).write_text("[1]"), "latest.json: has changed since it was written"),
    "a path": (change("file", file="../../../step_1.safetensors"), "latest.json: has changed since it was written"),
}
OTHERS = {
    "another format": (change("format", format=2), "was written in format 2, this version reads 1"),
    "another world": (change("identity", world_size=4), "was trained with 4 processes, not 1"),
    "other examples": (change("identity", examples=3), r"was trained with 3 examples, not \d+"),
    "short metrics": (
        lambda folder: os.truncate(folder.parents[1] / "metrics.csv", 20),
        "metrics.csv: is shorter than",
    ),
}


@pytest.mark.parametrize("damage", ROTTEN)
def test_the_one_before_a_damaged_checkpoint_leads_to_the_same_bytes(place, uninterrupted, copied, caplog, damage):
    how, said = ROTTEN[damage]
    how(copied / "checkpoints/segmentation")
    assert contents(train(place, copied, resume="must")) == uninterrupted["2D"]
    assert re.search(said, caplog.text) and "using the intact checkpoint before it, of step 3" in caplog.text


@pytest.mark.parametrize("damage", [*ROTTEN, *OTHERS])
def test_a_damaged_checkpoint_is_refused(place, copied, monkeypatch, damage):
    how, said = (ROTTEN | OTHERS)[damage]
    how(copied / "checkpoints/segmentation")
    if damage in ROTTEN:  # the others are no damage, which the one before would mend
        (copied / "checkpoints/segmentation/previous.json").unlink()
    monkeypatch.setattr(runner, "fit", None)  # and nothing is trained
    with pytest.raises(CheckpointError, match=said) as caught:
        train(place, copied, resume="auto")
    assert caught.value.exit_code == 4 and str(copied.parent) not in caught.value.line


def test_other_circumstances_are_said(place, copied, caplog):
    change("environment", threads=64, torch="1.0")(copied / "checkpoints/segmentation")
    train(place, copied, resume="auto")
    assert "made with threads 64, now" in caplog.text and "differ by rounding" in caplog.text


def inject(monkeypatch, spoils):
    """Spoil the loss of the passes for which `spoils(pass, learning rate)` is a number, which is added to it."""

    class Spoilt(Denoising):
        def turns(self, batch, step):
            for turn in super().turns(batch, step):
                yield turn._replace(loss=turn.loss + (spoils(step) or 0.0))

    monkeypatch.setattr(segmentation, "Denoising", Spoilt)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_left_out(place, tmp_path, monkeypatch, bad):
    """Passes 4 and 5 make update 3: spoilt, it leaves the weights alone; training goes on."""
    states = {}
    whole = runner.fit

    def watched(*arguments, learners, **named):
        for progress in whole(*arguments, learners=learners, **named):
            states[progress.step] = {name: value.clone() for name, value in learners.state().items()}
            yield progress

    monkeypatch.setattr(runner, "fit", watched)
    inject(monkeypatch, lambda step: bad if step == 5 else None)
    run = train(place, tmp_path / "run")
    moved = {name for name, value in states[3].items() if not torch.equal(value, states[2][name])}
    assert moved and all(".average." in name or name == "denoiser.skipped" for name in moved)
    assert any(not torch.equal(value, states[3][name]) for name, value in states[4].items() if ".model." in name)
    text = run.metrics_file.read_text()
    assert "nan" not in text and "inf" not in text and "\n3,loss," not in text and "\n4,loss," in text
    assert not not_finite(read_tensors(run.weights("best")))


def test_several_in_a_row_go_back_with_half_the_learning_rate(place, tmp_path, monkeypatch, caplog):
    """Updates 4 … 8 are spoilt the first time; then training goes on from the checkpoint after step 3."""
    seen = []

    def once(step):
        seen.append(step)
        return float("nan") if step >= 6 and seen.count(step) == 1 else None

    inject(monkeypatch, once)
    monkeypatch.setattr(runner, "PATIENCE", 2)
    run = train(place, tmp_path / "run", "training.validate_every=8")
    assert "segmentation: not finite at step 4; continuing with 0.5 of the learning rate from step 3" in caplog.text
    assert json.loads((run.folder / "checkpoints/segmentation/latest.json").read_text())["mark"]["share"] < 1
    steps = [line.split(",")[0] for line in run.metrics_file.read_text().splitlines() if ",loss," in line]
    assert steps == sorted(set(steps)) and run.facts["finished"]


def test_a_training_that_stays_bad_ends_with_its_batch_saved(place, tmp_path, monkeypatch):
    inject(monkeypatch, lambda step: float("nan") if step >= 12 else None)
    monkeypatch.setattr(runner, "PATIENCE", 2)
    with pytest.raises(Diverged, match=r"segmentation: not finite at step 7, with 1/8") as caught:
        train(place, tmp_path / "run")
    assert caught.value.exit_code == 6
    batch = read_tensors(tmp_path / "run/diverged/batch.safetensors")
    assert batch["image"].shape == (4, 4, 16, 16) and batch["mask"].shape == (4, 1, 16, 16)
    said = json.loads((tmp_path / "run/diverged/batch.json").read_text())
    assert said["after_step"] == 6 and len(said["examples"]) == 4
    pointer = json.loads((tmp_path / "run/checkpoints/segmentation/latest.json").read_text())
    assert pointer["mark"]["step"] == 6
    for path in (tmp_path / "run").rglob("*.safetensors"):
        assert not not_finite(read_tensors(path))
    with pytest.raises(Diverged):  # and going on says the same
        train(place, tmp_path / "run", resume="must")


def test_a_loader_worker_that_dies_is_named_and_done_without(place, uninterrupted, tmp_path, monkeypatch, caplog):
    whole, home, count = SliceDataset.__getitem__, os.getpid(), 0

    def mortal(dataset, key):
        nonlocal count
        count += 1
        if os.getpid() != home and count == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(dataset, key)

    monkeypatch.setattr("medseg_diff.data.datasets.batch.cores", lambda: 2)
    monkeypatch.setattr(SliceDataset, "__getitem__", mortal)
    run = train(place, tmp_path / "run", "training.workers=1")
    assert "segmentation: DataLoader worker (pid" in caplog.text
    assert "continuing without loader workers from step" in caplog.text
    assert contents(run) == uninterrupted["2D"]


def test_the_signals_mean_what_they_meant_before(place, uninterrupted, tmp_path, monkeypatch):
    """SIGUSR1 after step 5: a checkpoint there, Preempted with the words to go on, and the same bytes in the end."""
    whole = runner.fit

    def signalled(*arguments, **named):
        for progress in whole(*arguments, **named):
            if progress.step == 5:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield progress

    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        with monkeypatch.context() as patch, pytest.raises(Preempted) as caught:
            patch.setattr(runner, "fit", signalled)
            train(place, tmp_path / "run")
        assert not heard
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught.value.exit_code == 75 and "after step 5 of 8" in caught.value.line
    assert "train-seg --data" in caught.value.fix and "run --resume auto" in caught.value.fix
    assert contents(train(place, tmp_path / "run", resume="must")) == uninterrupted["2D"]


def test_a_full_disk_is_told_before_training(place, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(EnvironmentFault, match=r"0.00 GB are free where this run needs about 0.00") as caught:
        train(place, tmp_path / "run")
    assert caught.value.exit_code == 5


COMMAND = """
import os, sys, torch
torch.set_num_threads(int(os.environ["THREADS"]))
from medseg_diff import cli
from medseg_diff.data.datasets.slices import SliceDataset
from medseg_diff.training import runner
from medseg_diff.tasks.train import segmentation
segmentation.say_how_long = lambda *_, **__: None
whole = runner.fit
def slow(*arguments, **named):
    for progress in whole(*arguments, **named):
        print("step", progress.step, flush=True)
        sys.stdin.readline()
        yield progress
runner.fit = slow
sys.argv = ["medseg-diff", *sys.argv[1:]]
cli.main()
"""


class Process:
    """`train-seg` in a process of its own, which waits after every step to be told to go on."""

    def __init__(self, place, out, *words):
        folder, root = place
        arguments = ["train-seg", "--data", folder / "cases.csv", "--config", "quick/phantom", "--out", out]
        arguments += ["--data-root", root, "--runs", folder, "--device", "cpu", "--no-mlflow"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, arguments), *SMALL["2D"], *COMMON, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "THREADS": str(torch.get_num_threads())},
        )

    def until(self, step):
        for line in self.process.stdout:
            if line.strip() == f"step {step}":
                return
            self.go_on()
        raise AssertionError(self.process.stderr.read())

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        _, told = self.process.communicate(timeout=60)
        return self.process.returncode, told


def test_a_process_that_is_killed_or_told_to_stop(place, uninterrupted, tmp_path):
    """SIGKILL after step 5, with a loader worker alive; then SIGTERM after step 7; the rest here."""
    first = Process(place, tmp_path / "run", "training.workers=1")
    first.until(5)
    with pytest.raises(EnvironmentFault, match=rf"run: process {first.process.pid} is working in it") as caught:
        train(place, tmp_path / "run", "training.workers=1", resume="auto")
    assert caught.value.exit_code == 5
    first.process.kill()
    assert first.end()[0] == -signal.SIGKILL
    assert (tmp_path / "run/.lock").exists()  # left behind, and in nobody's way
    second = Process(place, tmp_path / "run", "training.workers=1", "--resume", "must")
    second.until(7)
    second.process.send_signal(signal.SIGTERM)
    second.go_on()
    code, told = second.end()
    assert code == 75 and "stopped: a checkpoint was written after step 7 of 8. Fix: continue with medseg-diff" in told
    assert "continuing from step 4 of 8" in told and "Traceback" not in told
    run = train(place, tmp_path / "run", "training.workers=1", resume="must")
    assert contents(run)["weights/last.safetensors"] == uninterrupted["2D"]["weights/last.safetensors"]


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_without_a_traceback(place, tmp_path, monkeypatch, capsys):
    folder, root = place
    words = ["train-seg", "--data", folder / "cases.csv", "--config", "quick/phantom", "--out", tmp_path / "run"]
    words += ["--data-root", root, "--runs", folder, "--device", "cpu", "--no-mlflow", *SMALL["2D"], *COMMON]
    whole = runner.fit

    def interrupted(*arguments, **named):
        for progress in whole(*arguments, **named):
            if progress.step == 5:
                os.kill(os.getpid(), signal.SIGINT)
            yield progress

    monkeypatch.setattr(runner, "fit", interrupted)
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    told = capsys.readouterr().err
    assert caught.value.code == 130 and "Traceback" not in told
    assert "stopped; to continue from the last checkpoint: medseg-diff train-seg" in told
    assert Run(tmp_path / "run").facts["finished"] is False


def train_both(place, out, resume=None):
    """`train-anomaly`: a denoiser, then a classifier, in one folder; what is measured at its end is left out."""
    folder, root = place
    return anomaly.train_anomaly(
        folder / "cases.csv",
        config="quick/guided",
        out=out,
        overrides=(*SMALL_ANOMALY, *(f"{name}={SHORT}" for name in ("training", "classifier_training"))),
        data_root=root,
        device="cpu",
        runs=folder,
        mlflow=False,
        resume=resume,
    )


@pytest.mark.parametrize("phase", ["denoiser", "classifier"])
def test_a_denoiser_and_a_classifier_go_on_too(place, tmp_path, monkeypatch, phase):
    monkeypatch.setattr(anomaly, "measure_classifier", lambda *_: None)
    monkeypatch.setattr(anomaly, "calibrate", lambda *_, **__: None)
    whole = train_both(place, tmp_path / "whole")
    fit = runner.fit

    def short(objective, *arguments, **named):
        for progress in fit(objective, *arguments, **named):
            if progress.step == 5 and phase in objective.models:
                raise Killed
            yield progress

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runner, "fit", short)
        train_both(place, tmp_path / "run")
    run = train_both(place, tmp_path / "run", resume="must")
    names = ["metrics.csv", "weights/denoiser.safetensors", "weights/classifier.safetensors"]
    names += [f"checkpoints/{name}/step_00000008.safetensors" for name in ("denoiser", "classifier")]
    for name in names:
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


@pytest.mark.parametrize(("stops", "steps"), [(4, 60), pytest.param(40, 400, marks=pytest.mark.soak)])
def test_stops_at_any_moment_lose_nothing(place, tmp_path, stops, steps):
    """A run that saves after every step, stopped at any moment of it (by a kill, or asked to end), then left alone."""
    words = (
        f"training={{steps: {steps}, batch: 2, precision: fp32, validate_every: 40, save_every: 1, warm_up_steps: 2}}",
    )
    whole, chance, reached = train(place, tmp_path / "whole", *words), random.Random(0), [0]
    pointer = tmp_path / "run/checkpoints/segmentation/latest.json"
    signals = itertools.cycle([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])

    def step():
        return json.loads(pointer.read_text())["mark"]["step"] if pointer.exists() else 0

    for _ in range(stops):
        child, code = os.fork(), 1
        if child == 0:
            try:
                train(place, tmp_path / "run", *words, resume="auto")
                code = 0
            except Preempted as stopped:
                code = int(stopped.exit_code)
            finally:
                os._exit(code)
        enough = reached[-1] + chance.randint(0, steps // (4 * stops))
        while step() < enough and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5 if enough == reached[-1] else 0.03))
        sent = next(signals)
        os.kill(child, sent)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (75, -sent), "it failed, or was not stopped in time"
        reached.append(step())
    assert reached == sorted(reached) and 0 < reached[-1] < steps
    run = train(place, tmp_path / "run", *words, resume="auto")
    for name in ("metrics.csv", "weights/best.safetensors", f"checkpoints/segmentation/step_{steps:08d}.safetensors"):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name

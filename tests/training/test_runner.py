"""A phase of two models: each learns at its own rate, both are kept, and both go on after a break."""

import dataclasses

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from medseg_diff.data.tables.manifest import Manifest
from medseg_diff.errors import UsageError
from medseg_diff.run import Run, create_run
from medseg_diff.training import runner
from medseg_diff.training.fit import FitSettings, Learner
from medseg_diff.training.job import Job, train
from medseg_diff.training.objective import Turn
from medseg_diff.training.phase import Bench, Phase
from medseg_diff.training.runner import Course
from medseg_diff.training.watcher import Watcher, Watchers
from medseg_diff.training.weights import read_tensors

SETTINGS = FitSettings(
    steps=8, batch=2, learning_rate=0.05, warm_up_steps=0, precision="fp32", validate_every=4, save_every=3
)


class Points(torch.utils.data.Dataset):
    """Five points around 2."""

    def __len__(self):
        return 5

    def __getitem__(self, key):
        return {"image": torch.tensor([1.8 + 0.1 * key.index])}


class Forgery:
    """A forger makes points out of noise, a judge scores points, the real ones high: the least GAN."""

    def __init__(self):
        self.models = {"forger": nn.Linear(1, 1), "judge": nn.Linear(1, 1)}
        with torch.no_grad():
            for number, parameter in enumerate(p for model in self.models.values() for p in model.parameters()):
                parameter.fill_(0.3 + 0.1 * number)

    def adopt(self, name, model):
        self.models[name] = model

    def turns(self, batch, step):
        noise = torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(step))
        forged = self.models["forger"](noise)
        yield Turn("forger", -self.models["judge"](forged).mean(), {})
        judge = self.models["judge"]
        yield Turn("judge", (judge(forged.detach()) - judge(batch.image)).mean(), {})


def phase():
    return Phase(
        "forgery",
        Forgery(),
        Points(),
        SETTINGS,
        settings_of={"judge": SETTINGS.but(learning_rate=0.2, decay="constant", steps=99)},
        draw=lambda progress, path: path.parent.mkdir(parents=True, exist_ok=True),
        weights={"forger": {"best": "forger", "last": "forger_last"}, "judge": {"last": "judge"}},
    )


def course(folder):
    run = Run(folder) if folder.exists() else create_run(folder, task="forge", recipe="toy", settings="{}")
    bench = Bench(run, Fabric(accelerator="cpu", devices=1), "fp32", "0" * 64, "1" * 64, "again")
    return Course(phase(), bench, Watchers())


def rates(course):
    return {name: learner.raw.param_groups[0]["lr"] for name, learner in course.learners.items()}


def test_each_model_learns_at_its_own_rate_and_both_are_kept(tmp_path):
    whole = course(tmp_path / "run")
    whole.run()
    found = rates(whole)
    assert found["judge"] == 0.2 and 0 < found["forger"] < 0.01  # at the end of its cosine, over the phase's steps
    run = whole.bench.run
    assert sorted(path.stem for path in (run.folder / "weights").iterdir()) == ["forger", "forger_last", "judge"]
    for name, file in (("forger", "forger"), ("forger", "forger_last"), ("judge", "judge")):
        kept = whole.learners.averages[name].state_dict()
        assert all(torch.equal(value, kept[key]) for key, value in read_tensors(run.weights(file)).items())


def test_both_go_on_after_a_break_to_the_same_bytes(tmp_path, monkeypatch):
    course(tmp_path / "whole").run()
    fit = runner.fit

    def short(*arguments, **named):
        for progress in fit(*arguments, **named):
            if progress.step == 5:
                raise KeyboardInterrupt
            yield progress

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "fit", short)
        course(tmp_path / "run").run()
    course(tmp_path / "run").run()
    names = [f"weights/{name}.safetensors" for name in ("forger", "forger_last", "judge")]
    for name in [*names, "checkpoints/forgery/step_00000008.safetensors"]:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


class Listening(Watcher):
    """Writes down what it hears, and may fail at it."""

    def __init__(self, broken=False):
        self.heard, self.broken = [], broken

    def hear(self, *words):
        self.heard.append(words)
        if self.broken:
            raise OSError("no room")

    def begin(self, run):
        self.hear("begin", (run.folder / "SHA256SUMS").exists())

    def metrics(self, step, numbers):
        self.hear("metrics", step, sorted(numbers))

    def trajectory(self, picture):
        self.hear("trajectory", picture.series, picture.step)

    def end(self, run, *, finished, weights):
        self.hear("end", finished, (run.folder / "SHA256SUMS").exists(), [path.stem for path in weights])


def test_watchers_hear_a_training_from_its_begin_to_its_end_and_cannot_stop_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LOG_EVERY", 3)
    good, broken = Listening(), Listening(broken=True)
    toy = Job("forge", "toy", SETTINGS, Manifest((), "cases.csv", tmp_path), precision="fp32")
    run = train(toy, lambda bench: [phase()], out=tmp_path / "run", device="cpu", watchers=[broken, good])
    assert run.facts["finished"] and broken.heard == [("begin", False)]
    numbers = ["learning_rate_forger", "learning_rate_judge", "loss"]
    steps = [("metrics", step, numbers) for step in (3, 4, 6, 8)]
    drawn = [("trajectory", "trajectories/forgery", step) for step in (0, 4, 8)]
    assert good.heard == [
        ("begin", False), drawn[0], steps[0], drawn[1], steps[1], steps[2], drawn[2], steps[3],
        ("end", True, True, ["forger"]),
    ]  # fmt: skip


def test_watchers_hear_that_a_training_broke_off(tmp_path):
    def phases(bench):
        yield phase()
        raise UsageError("nothing more to learn", fix="…")

    good, toy = Listening(), Job("forge", "toy", SETTINGS, Manifest((), "cases.csv", tmp_path), precision="fp32")
    with pytest.raises(UsageError):
        train(toy, phases, out=tmp_path / "run", device="cpu", watchers=[good])
    assert good.heard[-1] == ("end", False, False, ["forger"])


@pytest.mark.parametrize(("validate_every", "save_every"), [(4, 100), (100, 4), (4, 4)])
def test_nothing_is_kept_while_updates_are_left_out(tmp_path, monkeypatch, validate_every, save_every):
    """Weights that blew up are finite still when a checkpoint is due: to go back must lead to where they were sound."""
    update, blown, whole = Learner.update, [], course(tmp_path / "run")
    whole.phase = dataclasses.replace(
        whole.phase, settings=SETTINGS.but(steps=20, validate_every=validate_every, save_every=save_every)
    )

    def blows_up(self, step):
        update(self, step)
        if step == 6 and not blown:  # the update after it gives numbers that are not finite
            blown.append(step)
            with torch.no_grad():
                self.network.weight.mul_(1e38)

    monkeypatch.setattr(Learner, "update", blows_up)
    whole.run()
    assert blown and all(torch.isfinite(value).all() for value in whole.learners.state().values())
    assert whole.mark.share == 0.5 and whole.learners["forger"].network.weight.detach().abs().max().item() < 100


def test_a_validation_that_was_put_off_is_made_up_for(tmp_path, monkeypatch):
    whole, measured, validate = course(tmp_path / "run"), [], Course._validate

    def noted(self, progress, numbers):
        measured.append(progress.step)
        return validate(self, progress, numbers)

    monkeypatch.setattr(Course, "_validate", noted)
    update = Learner.update

    def leaves_one_out(self, step):
        if step == 3:
            self.finite = torch.zeros_like(self.finite)
        update(self, step)

    monkeypatch.setattr(Learner, "update", leaves_one_out)
    whole.run()
    assert measured == [5, 8] and whole.mark.share == 1

"""The training loop on problems whose answer is known."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medseg_diff.errors import CheckpointError, Diverged
from medseg_diff.training.fit import FitSettings, Learners, Progress, fit, learning_rate_factor
from medseg_diff.training.objective import Turn
from medseg_diff.training.weights import MovingAverage

WEIGHTS = torch.tensor([[1.5, -2.0, 0.5]])
SETTINGS = FitSettings(
    steps=200, batch=16, learning_rate=0.05, warm_up_steps=0, weight_decay=0.0, ema=0.9, precision="fp32"
)


@dataclass
class Pairs:
    """x [B, 3] and y = WEIGHTS x [B, 1]."""

    x: Tensor

    @property
    def y(self):
        return self.x @ WEIGHTS.T

    def to(self, device):
        return replace(self, x=self.x.to(device))


class Line:
    """Fit a line by least squares; counts the steps that it is asked for."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.models = {"line": nn.Linear(3, 1)}
        self.asked = []

    def adopt(self, name, model):
        self.models = {name: model}

    def turns(self, batch, step):
        self.asked.append(step)
        loss = (self.models["line"](batch.x) - batch.y).square().mean()
        yield Turn("line", loss, {"twice": 2 * loss.detach()})


def stream(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield Pairs(torch.randn(size, 3, generator=generator))


def run(objective, settings=SETTINGS, batches=None):
    fabric = Fabric(accelerator="cpu", devices=1)
    return list(fit(objective, batches or stream(settings.passes_batch), settings, fabric))


def state(objective):
    return {name: value.clone() for model in objective.models.values() for name, value in model.state_dict().items()}


def test_a_line_is_learned_and_so_is_its_average():
    objective = Line()
    network = objective.models["line"]
    progress = run(objective)
    assert [p.step for p in progress] == list(range(1, 201)) and objective.asked == list(range(200))
    assert progress[-1].read()["loss"] < 1e-4 < progress[0].read()["loss"]
    assert progress[0].read()["twice"] == pytest.approx(2 * progress[0].read()["loss"])
    for model in (network, progress[-1].averages["line"]):  # trained in place
        torch.testing.assert_close(model.weight.detach(), WEIGHTS, atol=0.02, rtol=0)
    assert not progress[-1].averages["line"].training
    assert not any(parameter.requires_grad for parameter in progress[-1].averages["line"].parameters())


def test_the_same_seed_gives_the_same_weights_to_the_last_byte():
    one, other = Line(), Line()
    run(one), run(other)
    assert all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


def test_accumulating_is_the_larger_batch_to_rounding():
    together, parted = Line(), Line()
    whole = list(itertools.islice(stream(16), 30))
    parts = [Pairs(part) for pairs in whole for part in pairs.x.split(4)]
    first = run(together, SETTINGS.but(steps=30), iter(whole))
    second = run(parted, SETTINGS.but(steps=30, accumulate=4), iter(parts))
    assert SETTINGS.but(accumulate=4).passes_batch == 4 and parted.asked == list(range(120))
    torch.testing.assert_close(state(parted), state(together), rtol=1e-4, atol=1e-5)
    for one, other in zip(first, second, strict=True):
        assert other.read() == pytest.approx(one.read(), rel=1e-3)


class Duel:
    """A point that flees a judge who tells points from zero: two models, two turns, each moved by its own loss alone.

    The judge's loss on the point's output reaches both; so does the point's loss, through the judge.
    """

    def __init__(self, first="point"):
        self.models = {"point": nn.Linear(1, 1, bias=False), "judge": nn.Linear(1, 1, bias=False)}
        with torch.no_grad():
            self.models["point"].weight.fill_(1.0)
            self.models["judge"].weight.fill_(2.0)
        self.first = first
        self.seen = []

    def adopt(self, name, model):
        self.models[name] = model

    def turns(self, batch, step):
        for name in (self.first, *{"point", "judge"} - {self.first}):
            self.seen.append({key: model.weight.item() for key, model in self.models.items()})
            answer = self.models["judge"](self.models["point"](torch.ones(1, 1))).squeeze()
            yield Turn(name, answer if name == "point" else -answer, {name: answer.detach()})


@pytest.mark.parametrize("first", ["point", "judge"])
def test_two_models_take_turns_and_neither_moves_on_the_others_loss(first):
    """Plain gradient descent, so that the size of a gradient shows: d/dpoint = judge, d/djudge = -point."""
    objective = Duel(first)
    settings = SETTINGS.but(steps=1, clip_norm=1e6)
    (progress,) = run_plainly(objective, settings)
    second = "judge" if first == "point" else "point"
    before, between = objective.seen
    assert between[second] == before[second] and between[first] != before[first]  # the second sees the first's update
    after = {name: model.weight.item() for name, model in objective.models.items()}
    assert after[first] == between[first]
    assert (before[first] - between[first]) / 0.05 == pytest.approx({"point": 2.0, "judge": -1.0}[first], rel=1e-5)
    slope = between["judge"] if second == "point" else -between["point"]
    assert (between[second] - after[second]) / 0.05 == pytest.approx(slope, rel=1e-4)
    assert set(progress.numbers) == {"loss", "point", "judge"}


def run_plainly(objective, settings):
    """The loop with SGD in the place of AdamW, whose first step hides the size of a gradient."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", lambda parameters, lr, **_: torch.optim.SGD(parameters, lr=lr))
        return run(objective, settings, stream(1))


def test_accumulated_turns_of_two_models_stay_apart():
    objective = Duel()
    run_plainly(objective, SETTINGS.but(steps=1, accumulate=2, clip_norm=1e6))
    moved = {name: model.weight.item() for name, model in objective.models.items()}
    assert moved["point"] == pytest.approx(1 - 0.05 * 2.0, rel=1e-5)
    assert moved["judge"] == pytest.approx(2 + 0.05 * (1 + 0.9) / 2, rel=1e-5)  # half of it from the point as it was


def test_gradients_are_clipped_to_the_norm():
    objective = Duel()
    run_plainly(objective, SETTINGS.but(steps=1, clip_norm=0.5))
    assert objective.models["point"].weight.item() == pytest.approx(1 - 0.05 * 0.5, rel=1e-4)


def test_the_average_warms_up():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    averaged = MovingAverage(model, 0.9)
    expected, value = 0.0, 0.0
    for n in range(200):
        value = math.sin(n)
        with torch.no_grad():
            model.weight.fill_(value)
        averaged.update_parameters(model)
        kept = min(0.9, (1 + n) / (10 + n)) if n else 0.0  # the first update copies
        expected = kept * expected + (1 - kept) * value
        assert averaged.module.weight.item() == pytest.approx(expected, abs=1e-5)


def test_buffers_are_averaged_too():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("value", torch.zeros(1))

    model = Counter()
    averaged = MovingAverage(model, 0.5)
    for value in (1.0, 3.0):
        model.value.fill_(value)
        averaged.update_parameters(model)
    assert 1.0 < averaged.module.value.item() < 3.0


def test_pace():
    cosine = SETTINGS.but(steps=100, warm_up_steps=10)
    paces = [learning_rate_factor(cosine, step) for step in range(100)]
    assert paces[0] == pytest.approx(0.1) and max(paces) <= 1 and paces[-1] < 0.001
    assert all(a < b for a, b in itertools.pairwise(paces[:10]))
    assert all(a > b for a, b in itertools.pairwise(paces[10:]))
    assert learning_rate_factor(SETTINGS.but(steps=100), 50) == pytest.approx(0.5)
    constant = SETTINGS.but(decay="constant", warm_up_steps=4)
    assert [learning_rate_factor(constant, step) for step in (0, 1, 3, 4, 199)] == [0.25, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_an_error_with_their_step(bad):
    progress = Progress(7, {"loss": torch.tensor(1.0), "loss_vlb": torch.tensor(bad)}, {})
    with pytest.raises(Diverged, match=r"loss_vlb is not finite at step 7. Fix: lower training.learning_rate"):
        progress.read()
    assert Progress(7, {"loss": torch.tensor(1.5)}, {}).read() == {"loss": 1.5}


def test_a_training_that_diverges_says_so():
    objective = Line()
    with torch.no_grad():
        objective.models["line"].weight.fill_(float("nan"))
    with pytest.raises(Diverged):
        run(objective, SETTINGS.but(steps=1))[0].read()


def on_the_device(learners):
    """The path that the GPU takes, here: the fused kernel is told not to update, and the host does not ask."""
    for learner in learners.values():
        learner.on_device = True
        learner.raw = learner.optimizer = torch.optim.AdamW(learner.network.parameters(), lr=0.05, fused=True)


def copy_of(learners):
    return {name: value.clone() for name, value in learners.state().items()}


class Poisoned(Line):
    """A line whose loss is not finite at some steps; of `inf`, the gradient is finite."""

    def __init__(self, at, value):
        super().__init__()
        self.at, self.value = at, value

    def turns(self, batch, step):
        for turn in super().turns(batch, step):
            spoilt = turn.loss * self.value if math.isnan(self.value) else turn.loss + self.value
            yield turn._replace(loss=spoilt if step in self.at else turn.loss)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_moves_nothing_and_is_counted(value, fused):
    objective = Poisoned({3, 4, 6}, value)
    learners = Learners(objective, SETTINGS, Fabric(accelerator="cpu", devices=1))
    if fused:
        on_the_device(learners)
    before, counts = copy_of(learners), []
    for progress in fit(objective, stream(16), SETTINGS.but(steps=9), learners["line"].fabric, learners=learners):
        now = copy_of(learners)
        moved = [
            not torch.equal(now[f"line.model.{name}"], before[f"line.model.{name}"]) for name in ("weight", "bias")
        ]
        steps = now["line.optimizer.weight.step"].item()
        counts.append(int(progress.skipped))
        assert all(moved) if counts[-1] == 0 else not any(moved)
        assert steps == sum(count == 0 for count in counts)
        before = now
    assert counts == [0, 0, 0, 1, 2, 0, 1, 0, 0]
    assert all(value.isfinite().all() for value in before.values())


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_restored_goes_on_to_the_same_bytes(fused):
    def learn(objective, start, state=None):
        learners = Learners(objective, SETTINGS, Fabric(accelerator="cpu", devices=1))
        if fused:
            on_the_device(learners)
        if state:
            learners.restore(state)
        batches = itertools.islice(stream(16), start, None)
        for progress in fit(
            objective, batches, SETTINGS.but(steps=12), learners["line"].fabric, learners=learners, start=start
        ):
            yield progress.step, copy_of(learners)

    whole = dict(learn(Line(), 0))
    for start in (1, 7):
        resumed = dict(learn(Line(), start, whole[start]))
        assert list(resumed) == list(range(start + 1, 13))
        for step, state in resumed.items():
            assert all(torch.equal(value, whole[step][name]) for name, value in state.items())


def test_a_share_of_the_learning_rate():
    objective = Duel()
    learners = Learners(objective, SETTINGS, Fabric(accelerator="cpu", devices=1))
    learners.restore(copy_of(learners), share=0.25)
    next(fit(objective, stream(1), SETTINGS, learners["judge"].fabric, learners=learners))
    assert learners["judge"].raw.param_groups[0]["lr"] == 0.05 * 0.25


def test_the_state_of_other_networks_is_refused():
    learners = Learners(Line(), SETTINGS, Fabric(accelerator="cpu", devices=1))
    state = copy_of(learners)
    for wrong in (state | {"line.model.weight": torch.zeros(2, 3)}, {"line.skipped": torch.zeros(())}):
        with pytest.raises(CheckpointError, match=r"is of other networks \(see line"):
            learners.restore(wrong)

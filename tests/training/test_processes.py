"""One training in two processes: both have the same weights, the same each time, and learn from the batch of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medseg_diff.device import make_fabric
from medseg_diff.errors import UsageError
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.training.job import check_shares
from tests.training.one_of_two import SETTINGS, lessons

ROOT = Path(__file__).parents[2]
PROCESSES = 2


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes has in the end; they speak over gloo, and are started as torchrun starts them."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    known |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0, "OMP_NUM_THREADS": 1}
    started = []
    for rank in range(PROCESSES):
        own = {name: str(value) for name, value in (known | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        command = [sys.executable, "-m", "tests.training.one_of_two", str(folder / f"{rank}.pt")]
        started.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | own, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), said
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone():
    """The same trainings in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WORLD_SIZE", "SLURM_NTASKS"):
            patch.delenv(name, raising=False)
        return lessons(make_fabric(torch.device("cpu"), "fp32"))


def same_bytes(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("lesson", ["filter", "filter, two passes", "filter, spoilt", "masks"])
def test_both_processes_have_the_same_bytes(both, lesson):
    first, second = (each[lesson] for each in both)
    assert same_bytes(first, second) and all(value.isfinite().all() for value in first.values())


def test_the_same_training_again_has_the_same_bytes(both):
    for each in both:
        assert same_bytes(each["masks"], each["masks again"])


def test_where_nothing_is_drawn_two_learn_what_one_learns_to_rounding(both, alone):
    """Their batches together are the batch of one, and the mean of their gradients is its gradient."""
    expected = alone["filter"]
    for lesson in ("filter", "filter, two passes"):
        torch.testing.assert_close(both[0][lesson], expected, rtol=1e-4, atol=1e-5)
    moved = expected["filter.model.weight"] - alone["filter, spoilt"]["filter.model.weight"]
    assert moved.abs().max() > 1e-3  # two updates more or less would show


def test_each_process_draws_noise_of_its_own(both, alone):
    """So that two processes train other weights than one, and not only otherwise rounded ones."""
    name = "denoiser.model.prior.head.2.weight"
    assert (both[0]["masks"][name] - alone["masks"][name]).abs().max() > 1e-4
    other = "denoiser.model.correction.head.2.weight"
    assert (both[0]["masks"][other] - alone["masks"][other]).abs().max() > 1e-3


def test_an_update_that_is_not_finite_in_one_is_left_out_by_both(both):
    for each in both:
        assert each["filter, spoilt"]["each_skipped"].tolist() == [0, 0, 1, 2, 0]
        assert each["filter, spoilt"]["filter.optimizer.weight.step"] == SETTINGS.steps - 2
        assert not each["filter"]["each_skipped"].any()


def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can():
    trainings = load_recipe("quick/brain_ldm_3d", task="synthesise").trainings
    assert load_recipe("mask_to_mr", task="synthesise").trainings.keys() == {"training"}  # it has no regressor
    assert load_recipe("dae", task="anomaly").trainings.keys() == {"training"}
    assert trainings.keys() == {"training", "space.training", "regressor_training"}
    check_shares({"training": SETTINGS.but(batch=12)}, 3)
    with pytest.raises(
        UsageError, match=r"space.training.batch 6 .* among 2 processes. Fix: set space.training.batch=8"
    ):
        check_shares({"space.training": SETTINGS.but(batch=6, accumulate=2)}, 2)

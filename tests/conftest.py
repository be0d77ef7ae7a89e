"""What many tests share: a small set of phantoms, and a tiny network trained on them for a moment."""

import importlib.util
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two threads must not spin against each other on a busy machine
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the workers are the parallelism

TINY = (
    "view.size=[32,32]",
    "network.width=16",
    "network.multipliers=[1,2]",
    "network.attention=[1]",
    "training.steps=20",
    "training.batch=8",
    "training.precision=fp32",
    "training.validate_every=10",
    "validation.slices=4",
    "validation.members=1",
    "validation.trajectories=0",
    "sampling.members=3",
    "sampling.network_batch=8",
)


@dataclass(frozen=True)
class Trained:
    """A run folder, the table that it was trained on, and the folder of runs (with the cache) that it lies in."""

    folder: Path
    table: Path
    runs: Path


@pytest.fixture(autouse=True)
def logger_as_imported():
    """Whatever a test, or a fixture of several tests, has the command line do to the package's logger."""
    log = logging.getLogger("medseg_diff")
    log.handlers[:], log.propagate = [], True
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """The table of ten small phantoms with two raters each; each xdist worker makes its own."""
    from medseg_diff.tasks.phantom import phantom

    return phantom(tmp_path_factory.mktemp("phantoms"), cases=10, shape=(40, 40, 32), raters=2, healthy=0.0, seed=1)


@pytest.fixture(scope="session")
def trained(phantoms, tmp_path_factory) -> Trained:
    """Twenty steps of a tiny network on the phantoms, in fp32 on the CPU. Read only: copy it to change it."""
    from medseg_diff.tasks.train.segmentation import train_seg

    runs = tmp_path_factory.mktemp("runs")
    run = train_seg(
        phantoms, config="quick/phantom", out=runs / "tiny", overrides=TINY, device="cpu", runs=runs, mlflow=False
    )
    return Trained(run.folder, phantoms, runs)


@pytest.fixture(scope="session")
def steep(trained, tmp_path_factory) -> Trained:
    """The same network with large random weights, whose answer changes a lot with a little rounding."""
    import shutil

    import torch

    from medseg_diff.recipes.segmentation import SegmentationRecipe
    from medseg_diff.run import Run
    from medseg_diff.settings import parse_settings, read_yaml
    from medseg_diff.training.weights import save_weights

    runs = tmp_path_factory.mktemp("steep")
    shutil.copytree(trained.folder, runs / "tiny")
    run = Run(runs / "tiny")
    recipe = parse_settings(SegmentationRecipe, read_yaml(run.recipe_file), source="recipe.yaml")
    network = recipe.build_denoiser().network
    shake(network, torch.Generator().manual_seed(0))
    save_weights(network, run.weights("best"))
    run.seal()
    return Trained(run.folder, trained.table, runs)


def shake(network, generator, size: float = 0.15) -> None:
    """Random numbers in every weight, also in those that begin as zero."""
    import torch

    with torch.no_grad():
        for parameter in network.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def ctrl_c():
    """SIGINT interrupts, even where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """The CPU, then a GPU where there is one: what is promised of the first holds on the second."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


@pytest.fixture
def card():
    """A card that this machine need not have (see tests/no_sync.py)."""
    from tests.no_sync import Card

    with Card() as card:
        yield card


@pytest.fixture
def two_threads():
    """Two threads for one test: they split sums and batches where one does not."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dice_of():
    """f(results, table): what every table must say of a folder of masks, the mean Dice of its cases with a lesion."""
    import numpy as np

    from medseg_diff.data.reading import read_labels
    from medseg_diff.data.tables.manifest import read_manifest

    def mean_dice(results, table, data_root=None):
        found = []
        for case in read_manifest(table, data_root=data_root).cases:
            if (results / case.name / "mask.nii.gz").is_file():
                mask, lesion = (
                    read_labels(path).voxels > 0 for path in (results / case.name / "mask.nii.gz", case.seg)
                )
                found += [2 * (mask & lesion).sum() / (mask.sum() + lesion.sum())] if lesion.any() else []
        return pytest.approx(np.mean(found), abs=1e-4)

    return mean_dice


@pytest.fixture(scope="session")
def auroc_of():
    """f(results, table, name): what every table must say of a folder of maps `name`, the mean AUROC over brain voxels."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    from medseg_diff.data.brain import find_brain
    from medseg_diff.data.reading import read_case, read_map
    from medseg_diff.data.tables.manifest import read_manifest

    def mean_auroc(results, table, name="anomaly", data_root=None):
        found = []
        for case in read_manifest(table, data_root=data_root).cases:
            if (results / case.name / f"{name}.nii.gz").is_file():
                images, score = read_case(case, tuple(case.channels)), read_map(results / case.name / f"{name}.nii.gz")
                brain, lesion = find_brain(images.image), images.reference > 0
                found += [roc_auc_score(lesion[brain], score.voxels[brain])] if lesion.any() else []
        return pytest.approx(np.mean(found), abs=1e-6)

    return mean_auroc


ANOMALY = {
    "task": "anomaly",
    "paper": "none: random weights",
    "channels": ["t2", "flair"],
    "view": {"size": [40, 40]},
    "schedule": {"kind": "linear", "length": 100},
    "denoiser": {"target": "velocity"},
    "network": {"kind": "unet", "width": 8, "multipliers": [1, 1], "blocks": 1, "attention": [], "groups": 4},
    "classifier": {"width": 8, "multipliers": [1, 1], "blocks": 1, "attention": [], "groups": 4, "pooling": "max_mean"},
    "training": {"precision": "fp32"},
    "engine": {"kind": "inversion", "depth": 20, "steps": 2, "scale": 5.0, "network_batch": 8},
    "findings": {"smoothing_mm": 4.0, "rim_mm": 4.0, "median": 3, "false_positive_rate": 0.2, "smallest_ml": 0.5},
}


@pytest.fixture(scope="session")
def untrained_anomaly(phantoms, tmp_path_factory) -> Trained:
    """An anomaly system with random weights, calibrated on the phantoms as if its classifier could see. Read only."""
    import torch

    from medseg_diff.data.tables.manifest import read_manifest
    from medseg_diff.recipes.anomaly import AnomalyRecipe
    from medseg_diff.run import create_run
    from medseg_diff.settings import parse_settings, write_yaml
    from medseg_diff.tasks.train.normative import calibrate
    from medseg_diff.training.classification import Skill
    from medseg_diff.training.job import seeded
    from medseg_diff.training.weights import save_weights

    runs = tmp_path_factory.mktemp("untrained")
    recipe = parse_settings(AnomalyRecipe, ANOMALY, source="tiny")
    run = create_run(runs / "anomaly", task="anomaly", recipe="tiny", settings=write_yaml(recipe))
    generator = torch.Generator().manual_seed(0)
    networks = {"denoiser": seeded(0, recipe.build_denoiser).network, "classifier": seeded(0, recipe.build_classifier)}
    for name, network in networks.items():
        shake(network, generator, 0.05)
        save_weights(network, run.weights(name))
    skill = [Skill(10, 0.9, 0.95, 0.3), Skill(90, 0.6, 0.7, 0.6)]
    calibrate(run, read_manifest(phantoms), skill=skill, device="cpu")
    run.note(finished=True, ended=1.0)
    return Trained(run.folder, phantoms, runs)


@pytest.fixture(scope="session")
def ray_of_two():
    """Ray on this machine, with two CPUs whatever it has."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    from medseg_diff.cluster import Sharing, _started

    with _started(Sharing(workers=2)) as ray:
        yield ray


@pytest.fixture
def ray_here(ray_of_two, request):
    """The same, where functions of this file of tests may be sent to workers."""
    ray_of_two.cloudpickle.register_pickle_by_value(request.module)
    yield ray_of_two
    ray_of_two.cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def threads(request):
    """One thread, then two, whatever the machine has: sums are split where threads part."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)

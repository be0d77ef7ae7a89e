"""What the tests of bad inputs share: the command line in this process, and what has to hold of every refusal."""

import logging
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg_diff import cli

TINY = ("network.width=8", "network.multipliers=[1,1]", "network.attention=[]", "network.groups=4", "view.size=[16,16]")
SHAPE = (6, 7, 8)
AFFINE = np.array([[-1.0, 0, 0, 3], [0, -1, 0, 4], [0, 0, 2, -5], [0, 0, 0, 1]])


@pytest.fixture
def call(monkeypatch, capfd):
    """medseg-diff WORDS in this process → (exit code, stdout, stderr), what libraries write themselves included."""
    log = logging.getLogger("medseg_diff")
    handlers, level, propagate = log.handlers[:], log.level, log.propagate

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capfd.readouterr()

    yield run
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


def everything_in(folder: Path) -> dict[str, int]:
    """Every file, link and folder below a folder with its size."""
    return {path.relative_to(folder).as_posix(): path.lstat().st_size for path in folder.rglob("*")}


@pytest.fixture
def refused(call, tmp_path):
    """Call the command line with something bad: the exit code, one line that names place and remedy, nothing written."""

    def check(code: int, *words, says: str = "", names: str = "", folder: Path = tmp_path) -> str:
        before = everything_in(folder)
        got, out, err = call(*words)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert got == code, (got, out, err)
        assert out == "" and lines and "Traceback" not in err, err
        for line in lines:
            assert "Fix: " in line and line.isprintable() and str(folder) not in line and len(line) < 2100, line
        assert says in lines[0] and names in lines[0], lines[0]
        assert everything_in(folder) == before
        return lines[0]

    return check


@pytest.fixture
def warned(call):
    """Call the command line with something doubtful: it goes well, and one line says what was doubtful."""

    def check(says: str, *words) -> None:
        code, _, err = call(*words)
        assert code == 0, err
        assert any(line.startswith("warning: ") and says in line for line in err.splitlines()), err

    return check


@pytest.fixture
def sound() -> nibabel.Nifti1Image:
    """A small image with nothing wrong."""
    return nibabel.Nifti1Image(np.random.default_rng(0).random(SHAPE, dtype=np.float32), AFFINE)


@pytest.fixture
def table(tmp_path):
    """Write cases.csv and its files; a file is bytes, an image, or nothing where the test makes it."""

    def write(text: str | bytes, **files: bytes | nibabel.Nifti1Image | None) -> Path:
        for name, content in files.items():
            if content is not None:
                path = tmp_path / name.replace("__", ".")
                path.write_bytes(content if isinstance(content, bytes) else content.to_bytes())
        path = tmp_path / "cases.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """The folder of a finished segmentation run: a tiny network with random weights. Read only: copy it to change it."""
    from medseg_diff.recipes.lookup import load_recipe
    from medseg_diff.run import create_run
    from medseg_diff.settings import write_yaml
    from medseg_diff.training.weights import save_weights

    recipe = load_recipe("quick/phantom", task="segment", overrides=TINY)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run = create_run(folder, task="segment", recipe="tiny", settings=write_yaml(recipe))
    save_weights(recipe.build_denoiser().network, run.weights("best"))
    run.seal()
    run.note(finished=True, ended=1.0)
    return folder


@pytest.fixture(scope="session")
def make_shaken(tmp_path_factory):
    """make_shaken(*words) is the folder of a finished segmentation run whose weights are all large and random."""
    import torch

    from medseg_diff.recipes.lookup import load_recipe
    from medseg_diff.run import create_run
    from medseg_diff.settings import write_yaml
    from medseg_diff.training.weights import save_weights

    def make(*words: str) -> Path:
        recipe = load_recipe("quick/phantom", task="segment", overrides=(*TINY, *words))
        folder = tmp_path_factory.mktemp("runs") / "shaken"
        run = create_run(folder, task="segment", recipe="shaken", settings=write_yaml(recipe))
        network, generator = recipe.build_denoiser().network, torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
        save_weights(network, run.weights("best"))
        run.seal()
        run.note(finished=True, ended=1.0)
        return folder

    return make


@pytest.fixture(scope="session")
def shaken(make_shaken) -> Path:
    """Such a run over slices. Read only: copy it to change it."""
    return make_shaken("sampling={steps: 1, members: 2, network_batch: 16}", "training.precision=fp32")


@pytest.fixture(scope="session")
def two_cases(tmp_path_factory) -> Path:
    """The table of phantom_0000 and phantom_0001, ten slices each, in a folder of their own. Read only."""
    from medseg_diff.data.formats.writing import write_volume
    from medseg_diff.data.reading import read_map
    from medseg_diff.tasks.phantom import phantom

    table = phantom(tmp_path_factory.mktemp("two"), cases=2, shape=(32, 32, 32), raters=0, healthy=0.0, seed=3)
    for path in table.parent.glob("*/*.nii.gz"):
        volume = read_map(path)
        voxels = volume.voxels[:, :, 12:22].astype("uint8" if path.name == "seg.nii.gz" else "float32")
        write_volume(path, voxels, volume.affine)
    return table

"""What the pages say to type, typed from top to bottom in a folder where what they name lies: tiny networks, a few steps."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg_diff import cli, phantom
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_labels, read_volume
from medseg_diff.data.tables.manifest import read_manifest, write_manifest
from tests.command_lines import lines_of

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CHANNELS = ("t1", "t1ce", "t2", "flair")
A_FEW_STEPS = "training.steps=2 training.batch=4 training.workers=0 training.validate_every=2"
SLICES = f"{A_FEW_STEPS} training.precision=fp32 view.size=[32,32] validation.slices=4 validation.members=1"
SMALL = "network.width=16 network.multipliers=[1,2] network.attention=[] network.groups=16"
CORRECTION = "network.correction.width=16 network.correction.multipliers=[1,1] network.correction.groups=16"
CLASSIFIER = "classifier.width=16 classifier.multipliers=[1,2] classifier.attention=[] classifier_training.steps=2"
COARSE = "preparation.spacing_mm=[3,3,null]"
ON_A_DEVICE = {"segment", "anomaly", "synthesise", "enhance", "tune", "audit"}
VOLUMES = "preparation.spacing_mm=[6,6,6] view.size=[24,32,24] validation.images=2 validation.drawn=1"
LATENT = (
    "space.autoencoder.widths=[8] space.autoencoder.latent=2 space.autoencoder.groups=4 space.training.steps=2 "
    "space.training.batch=2 space.training.accumulate=1 space.training.workers=0 space.training.validate_every=2 "
    "regressor.width=8 regressor.multipliers=[1,1] regressor.groups=4 regressor_training.steps=2 "
    "regressor_training.batch=2 regressor_training.workers=0 regressor_training.validate_every=2"
)
GUIDED = "network.width=8 network.multipliers=[1,1] network.groups=4 network.attention=[1] network.head_width=null"


def shorter(verb: str, line: str) -> str:
    """What makes a line of a page take seconds: said behind it, where the last word counts."""
    if verb == "train-seg":
        same_network = "--init-from" in line
        return A_FEW_STEPS if same_network else f"{SLICES} {SMALL} {CORRECTION} {COARSE} sampling.members=2"
    if verb == "train-anomaly":
        classifier = "" if "dae" in line else f"{CLASSIFIER} classifier_training.validate_every=2"
        return f"{A_FEW_STEPS} training.precision=fp32 view.size=[32,32] {SMALL} {COARSE} {classifier}"
    if verb == "train-synth" and "lsgan" in line:
        return f"{A_FEW_STEPS} {VOLUMES} network.widths=[8,8] network.groups=4 network.latent=4"
    if verb == "train-synth" and "mask_to_mr" in line:
        return f"{A_FEW_STEPS} view.size=[24,24] preparation.spacing_mm=[8,8,8] network.width=8 network.groups=4"
    if verb == "train-synth":
        return f"{A_FEW_STEPS} {VOLUMES} {LATENT} {GUIDED}"
    if verb == "train-enhance":
        return f"{A_FEW_STEPS} preparation.spacing_mm=[3,3,3] view.size=[16,16,16] network.width=8 network.groups=4"
    if verb == "synthesise":
        return "--number 2" if "lsgan" in line else "--number 2 --steps 2"  # a GAN takes one step
    known = {"segment": "--members 2", "audit": "--number 4 --steps 2"}
    return known.get(verb, "")


class Place:
    """A folder as a page's reader has it, and the program run in it."""

    def __init__(self, folder: Path, phantoms: Path) -> None:
        shutil.copytree(phantoms, folder, dirs_exist_ok=True)  # cases.csv, and a folder for each case
        self.folder = folder
        self.manifest = read_manifest(folder / "cases.csv")

    def copied(self, name: str, file: str) -> None:
        """The phantoms' files below `name`, called as `file` has it."""
        for number, case in enumerate(self.manifest.cases, start=1):
            for channel, path in {**case.images, "seg": case.seg}.items():
                target = self.folder / name / file.format(case=f"P_{number:03}", channel=channel)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)

    def patient(self, name: str) -> None:
        """One patient's channels in a folder of that name."""
        (self.folder / name).mkdir()
        for channel, path in self.manifest.cases[-1].images.items():
            shutil.copy(path, self.folder / name / f"{channel}.nii.gz")

    def table(self, name: str, **columns: str) -> None:
        """Another table of the phantoms, with columns of the reader's."""
        write_manifest(self.folder / name, [row | columns for row in self.manifest.rows()])

    def healthy(self, name: str, *, cases: int) -> None:
        """NAME.csv of phantoms without lesions in NAME/."""
        table = phantom(self.folder / name, cases=cases, shape=(40, 40, 32), healthy=1.0, held_out=0.3, seed=2)
        rows = read_manifest(table, data_root=table.parent).rows()
        beside = [
            {key: f"{name}/{value}" if value.endswith(".nii.gz") else value for key, value in row.items()}
            for row in rows
        ]
        write_manifest(self.folder / f"{name}.csv", beside)

    def nnunet(self, name: str) -> None:
        """The phantoms as a raw dataset of nnU-Net, whose labels have no gap, and its masks of all cases."""
        folder = self.folder / name
        for number, case in enumerate(self.manifest.cases, start=1):
            known, part = f"P_{number:03}", "Ts" if number > 8 else "Tr"
            for index, channel in enumerate(CHANNELS):
                target = folder / f"images{part}" / f"{known}_{index:04}.nii.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(case.images[channel], target)
            assert case.seg is not None
            seg = read_labels(case.seg)
            labels = np.where(seg.voxels == 4, 3, seg.voxels).astype(np.uint8)
            for where in (folder / f"labels{part}", self.folder / "nnUNet_predictions"):
                write_volume(where / f"{known}.nii.gz", labels, seg.affine)
        about = {
            "channel_names": {str(index): channel for index, channel in enumerate(CHANNELS)},
            "labels": {"background": 0, "core": 1, "oedema": 2, "enhancing": 3},
            "numTraining": 8,
            "file_ending": ".nii.gz",
        }
        (folder / "dataset.json").write_text(json.dumps(about))

    def segmented(self, scans: str, masks: str) -> None:
        """Masks of scans as another program might make them, its name behind theirs: label 4 where they are dark."""
        for path in (self.folder / scans).iterdir():
            volume = read_volume(path)
            dark = ((volume.voxels > 0) & (volume.voxels < 400)).astype(np.uint8)
            write_volume(self.folder / masks / path.name.replace(".nii", "_synthseg.nii"), 4 * dark, volume.affine)

    def type(self, verb: str, line: str) -> None:
        """One line of a page, shortened; it has to end well."""
        if verb == "audit-volumes":
            self.segmented("audit/scans", "masks")
        words = shlex.split(line)[1:] + shorter(verb, line).split()
        words += ["--device", "cpu"] if verb in ON_A_DEVICE else []
        words += ["--no-mlflow"] if verb.startswith("train-") else []
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0, f"{line}\n{result.output[-3000:]}\n{result.exception!r}"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Ten phantoms whose labels are BraTS's, with every covariate."""
    return phantom(tmp_path_factory.mktemp("phantoms"), cases=10, shape=(40, 40, 32), healthy=0.0, seed=1).parent


@pytest.fixture
def place(phantoms, tmp_path, monkeypatch):
    """The reader's folder, which the program is called in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Place(tmp_path, phantoms)


def readers_own(place: Place, page: str) -> None:
    """What a page takes for granted: the reader's scans and tables, by the names that it gives them."""
    for name in ("PATIENT_FOLDER", "NEW_PATIENT", "PATIENT"):
        place.patient(name)
    for name in ("brats", "BraTS2021"):
        place.copied(name, "{case}/{case}_{channel}.nii.gz")
    place.copied("patients", "{case}/{channel}.nii.gz")
    place.table("new.csv", split="")
    if page == "anomalies.md":
        place.healthy("healthy", cases=8)
    if page == "recipes.md":
        place.healthy("ukb", cases=40)
    if page == "nnunet.md":
        place.nnunet("nnUNet_raw/Dataset501_Glioma")
    shutil.copy(place.folder / "PATIENT" / "t1.nii.gz", place.folder / "t1.nii.gz")
    place.copied("scans", "{case}/{channel}.nii.gz")
    if page == "tour.md":
        (place.folder / "cases.csv").unlink()  # that it makes
    if page in ("fine_tune.md", "recipes.md"):
        place.type("train-seg", "medseg-diff train-seg --data cases.csv --out runs/first")


PAGES = {
    "README.md": ["results/report.html", "anomalies/PATIENT/anomaly.nii.gz"],
    "docs/howto/segment.md": ["results/PATIENT_FOLDER/report.html", "results/NEW_PATIENT/mask.nii.gz"],
    "docs/howto/brats.md": ["results/report.html"],
    "docs/howto/anomalies.md": ["anomalies/PATIENT_FOLDER/report.html"],
    "docs/howto/nnunet.md": ["results/comparison.json", "refined/P_009/mask.nii.gz"],
    "docs/howto/fine_tune.md": ["runs/second/run.json"],
    "docs/howto/which_recipe.md": ["runs"],
    "docs/recipes.md": [
        "synthetic/cases.csv",
        "audit/audit.json",
        "painted/cases.csv",
        "drawn/cases.csv",
        "finer/cases.csv",
        "enhanced",
    ],
    "docs/tour.md": ["cases.csv", "runs/study/study.json", "results/summary.csv"],
}


@pytest.mark.soak
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_to_type_works(page, place):
    path = ROOT / page
    readers_own(place, path.name)
    blocks = [block for kind, block in BLOCK.findall(path.read_text(encoding="utf-8")) if not kind]
    typed = [each for block in blocks for each in lines_of(block)]
    assert typed
    for verb, line in typed:
        place.type(verb, line)
    assert [name for name in PAGES[page] if not (place.folder / name).exists()] == []

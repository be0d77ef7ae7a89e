"""What is declared is used, what is used is declared, and little of it is needed for the first mask."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "medseg_diff").rglob("*.py"))
IMPORTED_AS = {  # where that is not the name that it is installed by
    "lightning-fabric": "lightning_fabric",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "simpleitk": "SimpleITK",
}
THERE_OR_NOT = {"IPython"}  # in a notebook, which brings it
NEEDED_BY_OTHERS = {"einops"}  # MONAI imports it and does not declare it


def imports_of(path, *, everywhere=True):
    """The packages that a module imports, or those that it imports when it is itself imported."""
    nodes = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]
        asleep = isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if everywhere or not asleep:
            nodes.extend(ast.iter_child_nodes(node))


def declared():
    """What pyproject.toml asks for, by the names that it is imported as: always, and in each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    names = {key: [re.match(r"[\w-]+", each)[0].lower() for each in value] for key, value in lists.items()}
    return {key: {IMPORTED_AS.get(name, name) for name in value} for key, value in names.items()}


def test_what_is_declared_is_used_and_what_is_used_is_declared():
    lists = declared()
    for of_the_repository in ("dev", "docs"):  # tools that the package itself does not import
        lists.pop(of_the_repository)
    wanted = set().union(*lists.values()) - NEEDED_BY_OTHERS
    used = {name for path in MODULES for name in imports_of(path)} - {
        *sys.stdlib_module_names,
        *THERE_OR_NOT,
        "medseg_diff",
    }
    assert (sorted(wanted - used), sorted(used - wanted)) == ([], [])


def test_what_an_extra_brings_is_imported_where_it_is_used_only():
    lists = declared()
    extras = set().union(*(lists[key] for key in lists if key not in ("", "dev")))
    assert len(extras) >= 3
    early = {path.name: extras & set(imports_of(path, everywhere=False)) for path in MODULES}
    assert {name: found for name, found in early.items() if found} == {}


def test_every_dependency_has_its_tested_version():
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    asked = {name.lower() for names in declared().values() for name in names}
    as_installed = {imported.lower(): name for name, imported in IMPORTED_AS.items()}
    assert sorted({as_installed.get(name, name) for name in asked} - pinned) == []


TRAIN_AND_SEGMENT = """
import sys
from pathlib import Path
for name in ("mlflow", "pandas", "SimpleITK", "skimage", "sklearn", "pydicom", "highdicom", "ray"):
    sys.modules[name] = None  # whoever imports it gets an ImportError
from medseg_diff import segment, train_seg
table, *settings = sys.argv[1:]
train_seg(table, config="quick/phantom", out="runs/a", device="cpu", mlflow=False, overrides=settings)
segment(Path(table).parent / "phantom_0000", model="runs/a", out="out", device="cpu", steps=1, members=1)
"""


def test_training_and_segmenting_nifti_need_no_library_of_tables_tracking_or_dicom(phantoms, tmp_path):
    few = ("training.steps=2", "training.validate_every=2", "validation.slices=2", "validation.calibration_slices=0")
    command = [sys.executable, "-c", TRAIN_AND_SEGMENT, str(phantoms), *TINY, *few]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "phantom_0000" / "mask.nii.gz").is_file()

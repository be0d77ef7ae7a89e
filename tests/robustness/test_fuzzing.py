"""Files changed at random: what the doors cannot use they refuse in our own words, and nothing else comes out of them."""

import gzip
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg_diff.data.geometry import is_usable
from medseg_diff.data.reading import count_volumes, read_labels, read_map, read_volume, read_volumes
from medseg_diff.data.tables.manifest import CASE_NAME, scan_manifest
from medseg_diff.errors import MedsegError
from medseg_diff.settings import apply_overrides, parse_settings, read_yaml

SECONDS, SOAK_SECONDS = 1.2, 50.0  # of each kind; CPU time
VOXELS = np.random.default_rng(0).integers(0, 5, (4, 5, 6)).astype(np.int16)
NUMBERS = [0, 1, 2, 127, 128, 255]
Check = Callable[[bytes, Path], None]


def changed(content: bytes, rng: np.random.Generator, words: list[bytes], reach: int | None = None) -> bytes:
    """Bytes set, bits flipped, parts cut out, doubled or replaced by words that mean something, up to `reach`."""
    out = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(max(1, min(len(out), reach or len(out)))))
        match int(rng.integers(6)):
            case 0 if out:
                out[place] = NUMBERS[int(rng.integers(len(NUMBERS)))]
            case 1 if out:
                out[place] ^= 1 << int(rng.integers(8))
            case 2:
                del out[place : place + int(rng.integers(1, 40))]
            case 3:
                out[place:place] = out[place : place + int(rng.integers(1, 40))]
            case 4:
                word = words[int(rng.integers(len(words)))]
                out[place : place + len(word)] = word
            case _:
                out[place:place] = words[int(rng.integers(len(words)))]
    return bytes(out)


def fuzz(
    seeds: list[bytes], check: Check, folder: Path, words: list[bytes], seconds: float, reach: int | None = None
) -> int:
    """Check changed files until the time is over; returns how many. What fails is told by its number."""
    path, ended, number = folder / "odd", time.process_time() + seconds, 0
    while time.process_time() < ended:
        rng = np.random.default_rng([7, number])
        content = changed(seeds[number % len(seeds)], rng, words, reach)
        try:
            check(content, path)
        except MedsegError as error:
            assert all(line.isprintable() and str(folder) not in line for line in error.lines), (number, error.lines)
        except BaseException as error:
            raise AssertionError(f"change {number}: {type(error).__name__}: {error}") from error
        number += 1
    return number


FIELDS = [struct.pack("<h", n) for n in (-1, 0, 1, 2, 3, 4, 8, 9999)] + [
    struct.pack("<f", x) for x in (0.0, -1.0, 1e30, -1e-30, float("nan"), float("inf"), 352.0, 1e9)
]


def check_image(content: bytes, path: Path) -> None:
    path = path.with_suffix(".mgz")  # the one format that is told by its name
    path.write_bytes(content)
    for read in (read_volume, read_labels, read_map):
        try:
            found = read(path)
        except MedsegError:
            continue
        assert found.voxels.ndim == 3 and np.isfinite(found.voxels).all() and is_usable(found.affine)
    count_volumes(path)
    read_volumes(path)


def images() -> list[bytes]:
    kinds = [nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.MGHImage]
    plain = [kind(VOXELS, np.diag([1, -1, 2, 1.0])).to_bytes() for kind in kinds]
    meta = b"ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    nrrd = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\nspace: LPS\n"
    nrrd += b"space directions: (1,0,0) (0,1,0) (0,0,1)\n\n"
    plain += [meta + VOXELS.tobytes("F"), nrrd + VOXELS.tobytes("F")]
    return [*plain, gzip.compress(plain[0]), gzip.compress(plain[2])]


TEXTS = [
    b",",
    b";",
    b"\t",
    b"\n",
    b"\r",
    b'"',
    b'""',
    b"\0",
    b"\xff",
    b"\x1b[2J",
    b"../",
    b"/etc/passwd",
    b"=1+1",
    b"a.nii",
]
TEXTS += [b"train", b"\xef\xbb\xbf", "\u202e".encode(), b"case", b"split", b"t1", b"NA", b"nan", b"1e999", b"x" * 300]
TABLE = b"case,patient,split,label,age_years,t1,seg\na,p,train,healthy,60,a.nii,b.nii\nb,q,val,,61.5,c.nii,\n"


def check_table(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    for name in "abc":
        path.with_name(f"{name}.nii").touch()
    manifest, problems = scan_manifest(path)
    assert all(CASE_NAME.fullmatch(case.name) for case in manifest.cases)
    assert all(
        found.resolve().is_relative_to(path.parent.resolve()) for c in manifest.cases for found in c.paths.values()
    )
    for problem in problems:
        assert problem.line.isprintable() and problem.fix, problem.line


MARKS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b": ",
    b"- ",
    b"\n",
    b"  ",
    b"&a ",
    b"*a",
    b"!!python/name:os.system ",
    b"${oc.env:HOME}",
]
MARKS += [
    b"'",
    b'"',
    b"|",
    b">",
    b"#",
    b"---\n",
    b"%YAML 1.1\n",
    b".nan",
    b"1e999",
    b"<<: ",
    b"\t",
    b"\0",
    b"\xff",
    b"? ",
    b"null",
    b"-1",
]


def check_recipe(content: bytes, path: Path) -> None:
    from medseg_diff.recipes.segmentation import SegmentationRecipe

    path.write_bytes(content)
    data = read_yaml(path)
    assert "${" not in json.dumps(data, default=str)
    parse_settings(SegmentationRecipe, data, source="odd")


def check_override(content: bytes, path: Path) -> None:
    apply_overrides({"training": {"steps": 3}, "size": [1, 2]}, [content.decode("utf-8", "replace")])


def check_weights(content: bytes, path: Path) -> None:
    import torch

    from medseg_diff.training.weights import load_weights

    path.write_bytes(content)
    layer = torch.nn.Linear(3, 2)
    load_weights(layer, path)
    assert all(parameter.isfinite().all() for parameter in layer.parameters())


def recipes() -> list[bytes]:
    from medseg_diff.files import configs_folder

    return [path.read_bytes() for path in sorted((configs_folder() / "segment").rglob("*.yaml"))]


def weights() -> list[bytes]:
    import torch
    from safetensors.torch import save

    return [save(torch.nn.Linear(3, 2).state_dict())]


KEYS = [
    b'"F32"',
    b'"I64"',
    b'"BF16"',
    b"[]",
    b"[0,0]",
    b"[2,3]",
    b"[9999999999,9999999999]",
    b"-1",
    b"null",
    b"{",
    b'"bias"',
    b"1e9",
]
KINDS = {
    "image headers": (images, check_image, FIELDS, 360),
    "images": (images, check_image, FIELDS, None),
    "tables": (lambda: [TABLE], check_table, TEXTS, None),
    "recipes": (recipes, check_recipe, MARKS, None),
    "settings": (lambda: [b"training.steps=3", b"size=[1,2]", b"a.b={c: [1]}"], check_override, MARKS, None),
    "safetensors headers": (weights, check_weights, KEYS, 140),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_our_own_errors_escape(tmp_path, kind):
    seeds, check, words, reach = KINDS[kind]
    assert fuzz(seeds(), check, tmp_path, words, SECONDS, reach) > 20


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_only_our_own_errors_escape_for_minutes(tmp_path, kind):
    seeds, check, words, reach = KINDS[kind]
    fuzz(seeds(), check, tmp_path, words, SOAK_SECONDS, reach)


@pytest.mark.parametrize("kind", [kind for kind, (_, check, *_) in KINDS.items() if check is not check_image])
def test_what_is_not_changed_goes_through(tmp_path, kind):
    seeds, check, _, _ = KINDS[kind]
    for content in seeds():
        check(content, tmp_path / "odd")


def test_images_that_are_not_changed_are_read(tmp_path):
    for content in images():
        (tmp_path / "odd.mgz").write_bytes(content)
        np.testing.assert_array_equal(read_labels(tmp_path / "odd.mgz").voxels, VOXELS)

"""What a case is in numbers, and the conventions that the cases of a table mix."""

import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_case
from medseg_diff.data.survey import CaseFacts, facts_of, mixed_conventions, table_facts
from medseg_diff.data.tables.case import Case

USUAL = {"shape": (4, 5, 6), "spacing_mm": (1.0, 1.0, 1.0), "orientation": "RAS", "labels_ml": {1: 2.0}}


def facts(name, **changes):
    known = {"patient": name, "split": None, "channels": ("t1",), "constant_background": True, "float_masks": ()}
    return CaseFacts(case=name, **(known | USUAL | changes))


def test_the_facts_of_a_case_are_those_of_its_files(tmp_path):
    image = np.zeros((10, 12, 8), dtype=np.float32)
    image[2:-2, 2:-2, 2:-2] = np.random.default_rng(0).random((6, 8, 4)) + 1
    labels = np.zeros(image.shape, dtype=np.float32)
    labels[4:6, 5:7, 3:5], labels[3, 3, 3] = 2, 7
    affine = np.diag([-1, 2, 3, 1.0])
    write_volume(tmp_path / "t1.nii.gz", image, affine)
    write_volume(tmp_path / "seg.nii.gz", labels, affine)
    case = Case("a", "p", images={"t1": tmp_path / "t1.nii.gz"}, seg=tmp_path / "seg.nii.gz")
    found = facts_of(case, read_case(case))
    assert (found.shape, found.spacing_mm, found.orientation) == ((10, 12, 8), (1.0, 2.0, 3.0), "LAS")
    assert found.labels_ml == pytest.approx({2: 8 * 0.006, 7: 0.006})
    assert found.constant_background and found.float_masks == ("seg",) and found.grid == "1×2×3 mm, LAS"
    assert found.as_dict()["labels_ml"] == {"2": 0.048, "7": 0.006}
    bare = Case("a", "p", images=case.images, raters=(case.seg,))
    assert facts_of(bare, read_case(bare)).labels_ml == found.labels_ml
    plain = Case("a", "p", images=case.images)
    assert facts_of(plain, read_case(plain)).labels_ml is None


def test_without_a_constant_background(tmp_path):
    image = np.random.default_rng(0).random((10, 12, 8), dtype=np.float32)
    write_volume(tmp_path / "t1.nii.gz", image, np.eye(4))
    case = Case("a", "p", images={"t1": tmp_path / "t1.nii.gz"})
    assert not facts_of(case, read_case(case)).constant_background


def test_a_table_in_numbers():
    cases = [
        Case(name, name[0], split, images={"t1": None})
        for name, split in (("a1", "train"), ("a2", "train"), ("b", "val"))
    ]
    read = [
        facts("a1", labels_ml={1: 2.0, 4: 1.0}),
        facts("a2", shape=(3, 9, 6), labels_ml={}),
        facts("b", labels_ml={1: 6.0}),
    ]
    table = table_facts(cases, read)
    assert (table["cases"], table["patients"], table["splits"]) == (3, 2, {"train": 2, "val": 1})
    assert table["grids"] == {"1×1×1 mm, RAS": {"cases": 3, "smallest": [3, 5, 6], "largest": [4, 9, 6]}}
    assert table["labels"]["1"] == {"cases": 2, "median_ml": 4.0, "smallest_ml": 2.0, "largest_ml": 6.0}
    assert table["labels"]["4"]["cases"] == 1


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (
            {"labels_ml": {1: 1, 2: 1, 4: 1}},
            {"labels_ml": {2: 1, 3: 1}},
            "label of the enhancing tumour differs: 4 in 1",
        ),
        ({"labels_ml": {1: 1}}, {"labels_ml": {255: 1}}, "label of the only region differs: 1 in 1 case (a), 255 in 1"),
        ({"orientation": "LPS"}, {}, "orientation differs: LPS in 1 case (a), RAS in 1 case (b)"),
        ({"spacing_mm": (1.0, 1.0, 3.0)}, {}, "spacing differs: 1×1×3 mm in 1 case (a), 1×1×1 mm in 1 case (b)"),
        ({"constant_background": False}, {}, "background differs: not constant in 1 case (a)"),
        ({"float_masks": ("seg",)}, {}, "type of the masks differs: floats in 1 case (a)"),
    ],
)
def test_what_is_mixed_is_said(a, b, said):
    (warning,) = mixed_conventions([facts("a", **a), facts("b", **b)])
    assert warning.startswith(said)
    assert mixed_conventions([facts("a", **a), facts("b", **a)]) == []


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"labels_ml": {1: 1, 2: 1, 4: 1}}, {"labels_ml": {2: 1}}),  # no enhancement in one of them
        ({"labels_ml": {1: 1, 3: 1, 4: 1}}, {"labels_ml": {1: 1, 3: 1}}),  # 4 is the cavity of BraTS 2024
        ({"labels_ml": {1: 1, 3: 1}}, {"labels_ml": {4: 1, 9: 1}}),  # no BraTS labels
        ({"labels_ml": {}}, {"labels_ml": None}),
        ({"spacing_mm": (1.0, 1.0, 1.004)}, {}),
        ({"float_masks": ("seg",)}, {"labels_ml": None}),
    ],
)
def test_what_only_looks_mixed_is_not_said(a, b):
    assert mixed_conventions([facts("a", **a), facts("b", **b)]) == []


def test_spacing_is_compared_along_the_axes_of_the_head():
    a = facts("a", orientation="RAS", spacing_mm=(1.0, 1.0, 3.0))
    b = facts("b", orientation="SLP", spacing_mm=(3.0, 1.0, 1.0))
    (warning,) = mixed_conventions([a, b])
    assert warning.startswith("orientation differs")


def test_many_groups_are_counted_not_listed():
    read = [facts(str(n), spacing_mm=(1.0, 1.0, 1.0 + n)) for n in range(9)] + [facts("x"), facts("y"), facts("z")]
    (warning,) = mixed_conventions(read)
    assert "1×1×1 mm in 4 cases, 1×1×2 mm in 1 case (1), 1×1×3 mm in 1 case (2), and 6 more;" in warning

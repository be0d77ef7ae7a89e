"""Channels and masks that are sound by themselves but do not fit each other, and masks that are none."""

import nibabel
import numpy as np
import pytest

SHAPE = (6, 7, 8)
AFFINE = np.array([[-1.0, 0, 0, 3], [0, -1, 0, 4], [0, 0, 2, -5], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
OTHER = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
MASK = (VOXELS > 0.6).astype(np.uint8)


def image(voxels, affine=AFFINE):
    return nibabel.Nifti1Image(voxels, affine)


def moved(**by):
    """The affine with some entries added to: r0c3=1.0 shifts by a millimetre."""
    affine = AFFINE.copy()
    for place, value in by.items():
        affine[int(place[1]), int(place[3])] += value
    return affine


def turned_about(axis, angle):
    turn = np.eye(4)
    a, b = [n for n in range(3) if n != axis]
    turn[a, a] = turn[b, b] = np.cos(angle)
    turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
    return turn @ AFFINE


ELSEWHERE = {
    "another shape": (image(OTHER[:, :, :7]), "6×7×7 voxels against 6×7×8"),
    "twice the size": (image(np.tile(OTHER, 2)), "6×7×16 voxels against 6×7×8"),
    "shifted a millimetre": (image(OTHER, moved(r0c3=1.0)), "corners up to 1 mm apart"),
    "shifted a hundredth": (image(OTHER, moved(r1c3=0.01)), "corners up to 0.01 mm apart"),
    "other spacing": (image(OTHER, moved(r2c2=0.5)), "corners up to 3.5 mm apart"),
    "a little other spacing": (image(OTHER, moved(r0c0=0.001)), "corners up to 0.005 mm apart"),
    "turned by a degree": (image(OTHER, turned_about(2, 0.0175)), "mm apart"),
    "turned by thirty degrees": (image(OTHER, turned_about(0, 0.52)), "mm apart"),
    "mirrored in place": (image(OTHER, np.diag([-1.0, 1, 1, 1]) @ AFFINE), "mm apart"),
    "flipped in its header only": (image(OTHER, AFFINE @ np.diag([-1.0, 1, 1, 1])), "mm apart"),
    "permuted axes of another shape": (image(OTHER.transpose(1, 0, 2)), "7×6×8 voxels against 6×7×8"),
    "sheared": (image(OTHER, moved(r0c1=0.3)), "mm apart"),
    "a slice": (image(OTHER[:, :, :1]), "6×7×1 voxels"),
}


@pytest.mark.parametrize("kind", ["t2", "seg"])
@pytest.mark.parametrize("how", ELSEWHERE)
def test_what_lies_elsewhere_is_refused_with_the_distance(refused, table, how, kind):
    odd, said = ELSEWHERE[how]
    if kind == "seg":
        odd = image((np.asarray(odd.dataobj) > 0.5).astype(np.uint8), odd.affine)
    data = table(f"case,t1,{kind}\np1,t1.nii,{kind}.nii\n", t1__nii=image(VOXELS), **{f"{kind}__nii": odd})
    line = refused(3, "validate", "--data", data, names=f"[p1/{kind}] not on the grid of t1: ")
    assert said in line and "--resample-to t1" in line


def test_axes_in_another_order_are_turned_and_said(warned, table):
    order = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 7], [0, 0, 0, 1.0]])
    odd = image(OTHER.transpose(2, 0, 1)[::-1], AFFINE @ order)
    data = table("case,t1,t2\np1,t1.nii,t2.nii\n", t1__nii=image(VOXELS), t2__nii=odd)
    warned("[p1] t2: reoriented from", "validate", "--data", data)


MASKS = {
    "probabilities": (VOXELS, "labels are not whole numbers"),
    "resampled linearly": (np.where(MASK > 0, 0.98, 0).astype(np.float32), "labels are not whole numbers"),
    "negative labels": (MASK.astype(np.int16) * -1, "labels run from -1 to 0"),
    "minus one as background": (MASK.astype(np.int16) - 1, "labels run from -1 to 0"),
    "labels beyond 32767": (MASK.astype(np.int32) * 70_000, "labels run from 0 to 70000"),
    "NaN as background": (np.where(MASK > 0, 1, np.nan).astype(np.float32), "not finite"),
    "no background": (np.ones_like(MASK), "every voxel has a label"),
    "inverted, several labels": (MASK + 1, "every voxel has a label"),
    "one-hot": (np.stack([MASK, 1 - MASK], -1), "several volumes"),
    "complex": (MASK.astype(np.complex64), "complex"),
}


@pytest.mark.parametrize("how", MASKS)
@pytest.mark.parametrize("column", ["seg", "seg_1"])
def test_what_is_no_mask_is_refused(refused, table, how, column):
    voxels, said = MASKS[how]
    data = table(f"case,t1,{column}\np1,t1.nii,seg.nii\n", t1__nii=image(VOXELS), seg__nii=image(voxels))
    refused(3, "validate", "--data", data, names=f"[p1/{column}] seg.nii: ", says=said)


DOUBTFUL_MASKS = {
    "empty": ("", np.zeros_like(MASK), "seg is empty"),
    "of a healthy case": ("healthy", MASK, "seg marks a lesion, but the table calls the case healthy"),
    "unusual labels": ("", MASK * 9, "seg holds the labels 9"),
}


@pytest.mark.parametrize("how", DOUBTFUL_MASKS)
def test_a_doubtful_mask_is_read_and_said(warned, table, how):
    label, voxels, said = DOUBTFUL_MASKS[how]
    data = table(f"case,label,t1,seg\np1,{label},t1.nii,seg.nii\n", t1__nii=image(VOXELS), seg__nii=image(voxels))
    warned(said, "validate", "--data", data)


def test_one_scan_as_two_channels_is_said(warned, table):
    data = table("case,t1,t2\np1,t1.nii,t2.nii\n", t1__nii=image(VOXELS), t2__nii=image(VOXELS.astype(np.float64)))
    warned("t1 and t2 hold the same voxels", "validate", "--data", data)


def test_one_scan_in_two_cases_is_leakage(refused, table):
    text = "case,split,t1\na,train,a.nii\nb,test,b.nii\n"
    data = table(text, a__nii=image(VOXELS), b__nii=image(VOXELS.astype(np.float64)))
    refused(2, "validate", "--data", data, names="[b/t1] cases.csv: ", says="same voxels as a channel of case a")


def test_every_fault_of_a_case_is_told_at_once(call, table):
    shifted = image(OTHER, moved(r0c3=1.0))
    text = "case,t1,t2,flair,seg\np1,t1.nii,t2.nii,flair.nii,seg.nii\n"
    data = table(
        text, t1__nii=image(VOXELS), t2__nii=shifted, flair__nii=shifted, seg__nii=image(MASK, moved(r1c3=2.0))
    )
    code, _, err = call("validate", "--data", data)
    assert code == 3 and [line.split("]")[0] for line in err.splitlines()] == [
        "error: [p1/t2",
        "error: [p1/flair",
        "error: [p1/seg",
    ]

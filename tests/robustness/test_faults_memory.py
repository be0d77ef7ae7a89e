"""Memory that is too small: the network is given half as much at once, down to one sample, and case.json says so."""

import json
import logging

import numpy as np
import pytest
import torch

from medseg_diff.data.reading import read_map
from medseg_diff.device import halved_to_fit
from medseg_diff.diffusion import Denoiser
from medseg_diff.errors import EnvironmentFault, OutOfMemory, is_out_of_memory
from medseg_diff.tasks.apply import sweep
from medseg_diff.tasks.apply.anomaly import anomaly
from medseg_diff.tasks.apply.segment import segment

ON_A_CPU = (
    "[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)
FAULTS = {
    "device": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "host": RuntimeError(ON_A_CPU),
    "windows": RuntimeError("not enough memory: you tried to allocate 9 bytes"),
    "library": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    "numpy": MemoryError("Unable to allocate 9 GiB"),
}
PATCHES = (
    "view={kind: patches, size: [16, 16, 16], per_case: 1}",
    "preparation.spacing_mm=[null,null,null]",
    "sampling={steps: 1, members: 2, network_batch: 8}",
    "training.precision=fp32",
)


@pytest.fixture
def small_memory(monkeypatch):
    """small_memory(most, error): the network fails with more than `most` samples; returns the batches that it was given."""
    whole, seen = Denoiser.output, []

    def set_up(most, error):
        def output(self, x_t, t, condition):
            seen.append(len(x_t))
            if len(x_t) > most:
                raise error
            return whole(self, x_t, t, condition)

        monkeypatch.setattr(Denoiser, "output", output)
        return seen

    return set_up


def maps_in(folder):
    return {path.name: read_map(path).voxels for path in folder.glob("*.nii.gz")}


def report_of(folder):
    return json.loads((folder / "case.json").read_text())


@pytest.mark.parametrize("error", FAULTS.values(), ids=FAULTS)
def test_every_way_to_say_so_is_understood(error):
    assert is_out_of_memory(error)


def in_monai(error):
    """The error as it comes out of a chain of MONAI's transforms."""
    from monai.transforms import Compose

    def fail(_):
        raise error

    with pytest.raises(RuntimeError, match="applying transform") as caught:
        Compose([fail])(0)
    return caught.value


def again(error, *, of_ours=False):
    """Another error that was raised while this one was dealt with, and without a word of it."""
    try:
        try:
            raise error
        except Exception:
            raise EnvironmentFault("the disk is full") if of_ours else KeyError("x")  # noqa: B904
    except Exception as found:
        return found


@pytest.mark.parametrize("error", FAULTS.values(), ids=FAULTS)
def test_it_is_understood_inside_of_other_errors(error):
    assert is_out_of_memory(in_monai(error)) and is_out_of_memory(again(error))
    assert not is_out_of_memory(in_monai(KeyError("x")))
    assert not is_out_of_memory(again(error, of_ours=True))  # ours say what they are
    assert is_out_of_memory(RuntimeError("Caught RuntimeError in DataLoader worker 0.\n … _ArrayMemoryError: …"))


def test_an_error_that_is_its_own_cause_is_looked_at_once():
    error = ValueError("odd")
    error.__cause__ = error
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 cannot be multiplied"), ValueError("out of memory")])
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        halved_to_fit(lambda batch: (_ for _ in ()).throw(error), 8)


def test_one_sample_that_is_too_much_is_the_environments_fault():
    tried = []

    def work(batch):
        tried.append(batch)
        raise FAULTS["device"]

    with pytest.raises(OutOfMemory, match=r"even with one sample.*Fix: .*--device cpu") as caught:
        halved_to_fit(work, 12)
    assert tried == [12, 6, 3, 1] and caught.value.exit_code == 5


@pytest.fixture(scope="module")
def deep(make_shaken):
    return make_shaken(*PATCHES)


@pytest.mark.parametrize("fault", ["device", "host"])
@pytest.mark.parametrize("kind", ["slices", "tiles"])
def test_segment_takes_half_as_much(request, two_cases, tmp_path, small_memory, caplog, monkeypatch, kind, fault):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    model = request.getfixturevalue("shaken" if kind == "slices" else "deep")
    options = {"model": model, "device": "cpu"}
    case = str(two_cases.parent / "phantom_0000")
    (plain,) = segment([case], out=tmp_path / "plain", **options)
    seen = small_memory(3, FAULTS[fault])
    (found,) = segment([case], out=tmp_path / "small", **options)
    asked = report_of(plain)["network_batch"]
    assert report_of(found)["network_batch"] == 2 and set(seen) == {asked // 2**n for n in range(5)} - {0, 1}
    said = f"memory ran out: 2 samples per network pass instead of {asked}"
    assert said in caplog.text and any(said in text for text in report_of(found)["warnings"])
    assert (
        report_of(plain)["warnings"] == [] and report_of(plain)["network_passes"] < report_of(found)["network_passes"]
    )
    (named,) = segment([case], out=tmp_path / "named", network_batch=2, **options)
    expected, maps = maps_in(plain), maps_in(found)
    assert expected["variance_between.nii.gz"].max() > 0.01
    for name in ("probability.nii.gz", "variance_between.nii.gz", "variance_within.nii.gz", "uncertainty.nii.gz"):
        assert np.abs(maps[name] - expected[name]).max() < 1e-4
        assert (named / name).read_bytes() == (found / name).read_bytes()  # case.json tells how to have it again


def test_segment_gives_up_at_one_with_a_code_and_a_remedy(shaken, two_cases, tmp_path, small_memory):
    small_memory(0, FAULTS["device"])
    with pytest.raises(EnvironmentFault, match="Fix: ") as caught:
        segment([str(two_cases.parent / "phantom_0000")], out=tmp_path / "out", model=shaken, device="cpu")
    assert caught.value.exit_code == 5 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["numpy", "monai"])
def test_a_case_too_large_for_the_memory_is_one_that_others_go_on_past(shaken, two_cases, tmp_path, monkeypatch, where):
    from medseg_diff.tasks.apply import segmentation_case

    whole = segmentation_case.prepare_case

    def prepare(images, preparation):
        if images.name == "phantom_0000":
            raise FAULTS["numpy"] if where == "numpy" else in_monai(FAULTS["numpy"])
        return whole(images, preparation)

    monkeypatch.setattr(segmentation_case, "prepare_case", prepare)
    with pytest.raises(OutOfMemory, match=r"\[phantom_0000\] memory runs out") as caught:
        segment(data=two_cases, out=tmp_path, model=shaken, device="cpu", keep_going=True)
    assert caught.value.exit_code == 5 and report_of(tmp_path / "phantom_0001")["case"] == "phantom_0001"


@pytest.mark.parametrize("fault", ["device", "host"])
def test_anomaly_takes_half_as_much(untrained_anomaly, tmp_path, small_memory, fault):
    case = str(untrained_anomaly.table.parent / "phantom_0000")
    options = {"model": untrained_anomaly.folder, "device": "cpu", "threshold": 0.5}
    (plain,) = anomaly([case], out=tmp_path / "plain", **options)
    seen = small_memory(1, FAULTS[fault])
    (found,) = anomaly([case], out=tmp_path / "small", **options)
    assert set(seen) == {8, 4, 2, 1} and report_of(found)["network_batch"] == 1
    assert report_of(plain)["network_batch"] == 8 and report_of(found)["engine"] == report_of(plain)["engine"]
    assert "memory ran out: 1 samples per network pass" in report_of(found)["warnings"][-1]
    expected = maps_in(plain)
    assert expected["anomaly.nii.gz"].std() > 0.01
    for name, voxels in maps_in(found).items():
        np.testing.assert_allclose(voxels, expected[name], atol=1e-3 * max(1, np.abs(expected[name]).max()))
    assert anomaly([case], out=tmp_path / "small", **options) == [found]  # the same settings: complete


def test_so_does_its_sweep(untrained_anomaly, tmp_path, small_memory, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    monkeypatch.setattr(sweep, "grid_of", lambda system: [system.engine])
    case = str(untrained_anomaly.table.parent / "phantom_0000")
    options = {"model": untrained_anomaly.folder, "device": "cpu", "sweep": True}
    (plain,) = anomaly([case], out=tmp_path / "plain", **options)
    small_memory(3, FAULTS["device"])
    (found,) = anomaly([case], out=tmp_path / "small", **options)
    assert "memory ran out: 2 samples per network pass instead of 8" in caplog.text
    for one, other in zip(numbers_of(found), numbers_of(plain), strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def numbers_of(folder):
    return [float(cell) for cell in (folder / "sweep.csv").read_text().splitlines()[1].split(",") if cell]

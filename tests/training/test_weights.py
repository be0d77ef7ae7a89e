"""Weights come back as they were written, and nothing else is accepted."""

import os

import pytest
import torch
from torch import nn

from medseg_diff.errors import CheckpointError
from medseg_diff.training.weights import load_weights, save_tensors, save_weights


def network(width=4, value=None):
    model = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width))
    if value is not None:
        with torch.no_grad():
            model[0].weight.fill_(value)
    return model


def test_every_byte_comes_back(tmp_path):
    model, other = network().to(memory_format=torch.channels_last), network()
    save_weights(model, tmp_path / "weights" / "best.safetensors")
    load_weights(other, tmp_path / "weights" / "best.safetensors")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["best.safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_who_may_read_them_is_up_to_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        for _ in range(2):
            save_weights(network(), tmp_path / "best.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "best.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (network(width=5), "does not fit the recipe's network .* first 0.weight"),
        (nn.Sequential(nn.Conv2d(1, 4, 3)), r"does not fit the recipe's network \(5 entries differ"),
    ],
)
def test_the_weights_of_another_network_are_refused(tmp_path, model, said):
    save_weights(network(), tmp_path / "best.safetensors")
    with pytest.raises(CheckpointError, match=said) as caught:
        load_weights(model, tmp_path / "best.safetensors")
    assert caught.value.file == "best.safetensors" and caught.value.exit_code == 4


def test_weights_that_are_not_finite_are_refused(tmp_path):
    save_weights(network(value=float("nan")), tmp_path / "best.safetensors")
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity in 0.weight"):
        load_weights(network(), tmp_path / "best.safetensors")


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:20], lambda b: b"", lambda b: b"\x80\x04pickle"])
def test_a_damaged_file_is_refused_and_the_network_left_alone(tmp_path, damage):
    path = tmp_path / "best.safetensors"
    save_weights(network(), path)
    path.write_bytes(damage(path.read_bytes()))
    model = network(value=2.0)
    with pytest.raises(CheckpointError, match=r"best.safetensors: cannot be read") as caught:
        load_weights(model, path)
    assert str(tmp_path) not in caught.value.line
    assert (model[0].weight == 2).all()


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        load_weights(network(), tmp_path / "gone.safetensors")
    assert str(tmp_path) not in caught.value.line


def stored_as(model, dtype, path):
    save_tensors({name: each.to(dtype) if each.is_floating_point() else each for name, each in state_of(model)}, path)


def state_of(model):
    return model.state_dict().items()


def test_bf16_numbers_are_widened_to_what_they_are(tmp_path):
    model, other = network(), network(value=2.0)
    stored_as(model, torch.bfloat16, tmp_path / "best.safetensors")
    load_weights(other, tmp_path / "best.safetensors")
    for name, tensor in state_of(other):
        expected = model.state_dict()[name]
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected.bfloat16().float() if expected.is_floating_point() else expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_numbers_than_its_own_are_refused(tmp_path, dtype):
    stored_as(network(), dtype, tmp_path / "best.safetensors")
    with pytest.raises(CheckpointError, match=f"holds {str(dtype).removeprefix('torch.')} numbers in 0.weight"):
        load_weights(network(), tmp_path / "best.safetensors")


def test_fp32_numbers_are_not_narrowed(tmp_path):
    stored_as(network(), torch.float32, tmp_path / "best.safetensors")
    with pytest.raises(CheckpointError, match="holds float32 numbers in "):
        load_weights(network().bfloat16(), tmp_path / "best.safetensors")

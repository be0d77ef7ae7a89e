"""Weights that can be trusted: the moving average, and safetensors files written whole and read strictly."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from medseg_diff.errors import CheckpointError
from medseg_diff.files import whole_file


class MovingAverage(AveragedModel):
    """An exponential moving average of parameters and buffers that warms up: the n-th update keeps
    min(decay, (1 + n) / (10 + n)), and the first one copies.

    The count of updates lies on the host. torch's own `update_parameters` copies it to the device at every update, and
    waits until that has done all that it was given before.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        kept, new = ([*each.parameters(), *each.buffers()] for each in (self.module, model))
        fresh = [tensor.detach().to(old.dtype) for tensor, old in zip(new, kept, strict=True)]
        n = float(self.n_averaged)
        share = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_copy_(kept, torch._foreach_lerp(fresh, kept, share) if n else fresh)
        self.n_averaged += 1


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a module's state as safetensors, whole or not at all."""
    save_tensors(model.state_dict(), path)


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors, whole or not at all.

    Raises: EnvironmentFault where the folder cannot be written or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    here = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with whole_file(path) as temporary:
        temporary.touch()
        usual = temporary.stat().st_mode  # the library writes files that nobody else may read
        try:
            save_file(here, temporary)
            temporary.chmod(usual)
        except SafetensorError as error:  # its own name for what the system said
            raise OSError(str(error)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors from a safetensors file. Raises: CheckpointError where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split()).replace(str(path), path.name)[:120]  # no absolute path
        raise CheckpointError(f"cannot be read ({reason})", fix="copy the run folder again", file=path.name) from None


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a flat state whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def read_finite(path: Path) -> dict[str, Tensor]:
    """Named tensors of numbers that one can compute with. Raises: CheckpointError."""
    state = read_tensors(path)
    if broken := not_finite(state):
        raise CheckpointError(f"holds NaN or infinity in {broken[0]}", fix="train again", file=path.name)
    return state


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file of exactly its names and shapes; bf16 numbers are widened to its fp32, exactly.

    Raises: CheckpointError where the file is unreadable, fits another network, or holds numbers that are not finite.
    """
    state = read_tensors(path)
    expected = model.state_dict()
    odd = sorted(set(state) ^ set(expected)) or [name for name in expected if state[name].shape != expected[name].shape]
    if odd:
        raise CheckpointError(
            f"does not fit the recipe's network ({len(odd)} entries differ, first {odd[0]})",
            fix="use the recipe.yaml that was trained",
            file=path.name,
        )
    for name, tensor in state.items():
        if (tensor.dtype, expected[name].dtype) == (torch.bfloat16, torch.float32):  # as a small file stores them
            state[name] = tensor.float()
    wrong = [name for name in expected if state[name].dtype != expected[name].dtype]
    if wrong:
        found = f"holds {str(state[wrong[0]].dtype).removeprefix('torch.')} numbers in {wrong[0]}"
        raise CheckpointError(found, fix="use the weights that were trained", file=path.name)
    broken = not_finite(state)
    if broken:
        raise CheckpointError(f"holds NaN or infinity in {broken[0]}", fix="train again", file=path.name)
    model.load_state_dict(state)

"""Weights that can be trusted: the moving average, and safetensors files written whole and read strictly."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from medseg_diff.errors import CheckpointError
from medseg_diff.files import whole_file


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of parameters and buffers that warms up: the n-th update keeps
    min(decay, (1 + n) / (10 + n))."""

    def average(kept: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        n = float(count)
        return torch.lerp(new.to(kept.dtype), kept, min(decay, (1 + n) / (10 + n)))

    averaged = AveragedModel(model, avg_fn=average, use_buffers=True)
    return averaged.requires_grad_(False).eval()


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a module's state as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(path) as temporary:
        save_file(state, temporary)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file of exactly its names and shapes.

    Raises: CheckpointError where the file is unreadable, fits another network, or holds numbers that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split()).replace(str(path), path.name)[:120]  # no absolute path
        raise CheckpointError(f"cannot be read ({reason})", fix="copy the run folder again", file=path.name) from None
    wanted = model.state_dict()
    odd = sorted(set(state) ^ set(wanted)) or [name for name in wanted if state[name].shape != wanted[name].shape]
    if odd:
        raise CheckpointError(
            f"holds another network than the recipe's ({len(odd)} entries differ, first {odd[0]})",
            fix="use the recipe.yaml that was trained",
            file=path.name,
        )
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"holds NaN or infinity in {broken[0]}", fix="train again", file=path.name)
    model.load_state_dict(state)

"""MONAI's DiffusionModelUNet behind the signature of the house, so that weights of its model zoo can be used.

Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022, arXiv 2112.10752; Pinaya et al., Brain
Imaging Generation with Latent Diffusion Models, 2022, arXiv 2209.07162. What these weights call time 0 is our t = 1: that
is `first_time` of the denoiser's settings and nothing here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.diffusion.condition import Condition
from medseg_diff.errors import CheckpointError
from medseg_diff.networks.blocks import cropped, known_or_null, null_image, with_image
from medseg_diff.networks.encoder import Blocks, GridLevel, Width, check_levels, padded
from medseg_diff.networks.norm import GroupNorm, GroupNormSiLU
from medseg_diff.settings import Settings

# How MONAI Generative, where most of the zoo was trained, called what MONAI calls otherwise.
FORMER_NAMES = (
    (re.compile(r"\.attn\.(to_[qkv])\."), r".\1."),
    (re.compile(r"\.attn\.out_proj\."), ".proj_attn."),
    (re.compile(r"(transformer_blocks\.\d+\.attn\d)\.out_proj\."), r"\1.to_out.0."),
    (re.compile(r"\.postconv\."), ".conv."),
)


class MonaiUNetSettings(Settings):
    """MONAI's own settings under our names.

    `widths` and `blocks` for each level, finest first; `attention` lists the levels that attend (the middle always
    does), in heads of `head_width` channels. `context` is the length of a token for cross-attention, 0 without.
    """

    kind: Literal["monai_unet"] = "monai_unet"
    widths: tuple[Width, ...] = Field(default=(32, 64, 64, 64), min_length=1, max_length=10)
    blocks: tuple[Blocks, ...] = (2, 2, 2, 2)
    attention: tuple[GridLevel, ...] = (2, 3)
    head_width: int = Field(default=8, ge=1, le=2048)
    groups: int = Field(default=32, ge=1, le=2048)
    epsilon: float = Field(default=1e-6, gt=0)
    resampling: Literal["residual", "plain"] = "plain"
    context: int = Field(default=0, ge=0, le=2**16)
    transformer_layers: int = Field(default=1, ge=1, le=32)
    projection: bool = True  # behind the self-attention; weights from before MONAI 1.4 may have none

    @model_validator(mode="after")
    def _fits(self) -> "MonaiUNetSettings":
        if len(self.blocks) != len(self.widths):
            raise ValueError("widths and blocks need one number for each level")
        odd = [width for width in self.widths if width % self.groups]
        if odd:
            raise ValueError(f"{odd[0]} channels do not divide by {self.groups} groups")
        check_levels(self.widths, self.blocks, attend=(*self.attention, len(self.widths) - 1), part=self.head_width)
        return self

    @property
    def width(self) -> int:
        """Channels of the finest level."""
        return self.widths[0]

    @property
    def step(self) -> int:
        """Every side is padded to a multiple of this, so that every level halves evenly."""
        return int(2 ** (len(self.widths) - 1))

    def build(self, *, dims: int, channels: int, outputs: int, image_channels: int = 0) -> "MonaiUNet":
        """A network from [B, channels, *S] and a condition image of `image_channels` to [B, outputs, *S]."""
        return MonaiUNet(self, dims=dims, channels=channels, outputs=outputs, image_channels=image_channels)


class MonaiUNet(nn.Module):
    """f(x_t, t, condition): x_t [B, C, *S] with *S of any size, t [B] or [1] (one time for all) → [B, outputs, *S].

    The condition image stands behind x_t; context tokens [B, N, D] are attended to. Both have learned null embeddings.
    """

    def __init__(
        self, settings: MonaiUNetSettings, *, dims: int, channels: int, outputs: int, image_channels: int = 0
    ) -> None:
        super().__init__()
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

        self.settings = settings
        self.null_image = null_image(image_channels, dims)
        self.null_context = nn.Parameter(torch.zeros(1, 1, settings.context)) if settings.context else None
        self.network = DiffusionModelUNet(
            spatial_dims=dims,
            in_channels=channels + image_channels,
            out_channels=outputs,
            num_res_blocks=settings.blocks,
            channels=settings.widths,
            attention_levels=[level in settings.attention for level in range(len(settings.widths))],
            norm_num_groups=settings.groups,
            norm_eps=settings.epsilon,
            resblock_updown=settings.resampling == "residual",
            num_head_channels=settings.head_width,
            with_conditioning=settings.context > 0,
            transformer_num_layers=settings.transformer_layers,
            cross_attention_dim=settings.context or None,
            include_fc=settings.projection,
            use_flash_attention=True,  # the same numbers without the whole matrix of attention in memory
        )
        own_norms(self.network)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x = padded(with_image(x_t, condition, self.null_image), self.settings.step)
        context = self._context(len(x_t), condition, x.dtype)
        # One time for all is embedded once: rows of a product may round apart.
        return cropped(self.network(x, t, context), x_t.shape[2:])

    def _context(self, batch: int, condition: Condition, dtype: torch.dtype) -> Tensor | None:
        if self.null_context is None:
            return None
        if condition.context is None:
            return self.null_context.to(dtype).expand(batch, -1, -1)
        return known_or_null(condition.context.to(dtype), condition.keep, self.null_context)


def load_monai_state(network: MonaiUNet, state: Mapping[str, Tensor] | Path) -> None:
    """Fill a network with the weights of a MONAI DiffusionModelUNet: a safetensors file, or its state dict.

    Names of MONAI Generative are understood as well. The learned null embeddings, which MONAI has none of, stay as they are.
    Raises: CheckpointError where the file is unreadable, or names, shapes or numbers do not fit; then nothing is changed.
    """
    source = state.name if isinstance(state, Path) else None
    found = _read_safetensors(state) if isinstance(state, Path) else dict(state)
    expected = network.network.state_dict()
    renamed = {}
    for name in expected:
        there = next((known for known in (name, _former(name)) if known in found), None)
        if there is None:
            raise _misfit(f"has no `{name}`", source)
        renamed[name] = found.pop(there)
    if found:
        raise _misfit(f"has `{next(iter(found))}`, which the recipe's network does not have", source)
    for name, tensor in renamed.items():
        if tensor.shape != expected[name].shape:
            raise _misfit(f"`{name}` is {_by(tensor)}, the recipe's network has {_by(expected[name])}", source)
        if not tensor.isfinite().all():
            raise CheckpointError(f"holds NaN or infinity in `{name}`", fix="get the weights again", file=source)
    network.network.load_state_dict(renamed)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split()).replace(str(path), path.name)[:120]
        raise CheckpointError(
            f"cannot be read as safetensors ({reason})", fix="convert it (see docs/recipes.md)", file=path.name
        ) from None


def _former(name: str) -> str:
    for pattern, former in FORMER_NAMES:
        name = pattern.sub(former, name)
    return name


def _misfit(found: str, source: str | None) -> CheckpointError:
    return CheckpointError(found, fix="set the network's settings to those the weights were trained with", file=source)


def _by(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"


def own_norms(network: nn.Module) -> None:
    """Norms whose answer for a sample does not depend on its neighbours, with the SiLU behind them where MONAI has one,
    under MONAI's names."""
    for module in list(network.modules()):
        norms = {name: child for name, child in module.named_children() if isinstance(child, nn.GroupNorm)}
        activation = next((name for name, child in module.named_children() if isinstance(child, nn.SiLU)), None)
        kind = GroupNormSiLU if activation else GroupNorm
        for name, norm in norms.items():
            setattr(module, name, kind(norm.num_channels, norm.num_groups, epsilon=norm.eps))
        if norms and activation:
            setattr(module, activation, nn.Identity())
            if isinstance(layer := getattr(module, "time_emb_proj", None), nn.Linear):
                module.time_emb_proj = _OfSiLU(layer)  # of a residual block, whose SiLU is used of the embedding, too


class _OfSiLU(nn.Linear):
    """A linear layer of SiLU(x), with the weights of another one."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.silu(x))

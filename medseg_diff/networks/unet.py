"""The U-Net of the diffusion papers, in 2D and 3D from one class.

Ho et al., 2020, arXiv 2006.11239 (additive time embedding, plain resampling); Dhariwal & Nichol, Diffusion Models Beat
GANs on Image Synthesis, 2021, arXiv 2105.05233 (adaptive group norm, residual resampling, attention at several levels).
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.blocks import CONVOLUTION, POOLING, Attention, Chain, Resample, Residual, sinusoids, zeroed
from medseg_diff.networks.norm import GroupNorm
from medseg_diff.settings import Settings


class UNetSettings(Settings):
    """Size and kind of a U-Net. Level 0 is the finest grid; each level halves it.

    `attention` lists the levels that attend (the middle always does where the list is not empty), with `heads` heads or,
    where `head_width` is given, as many as fit. `stem` 2 folds 2×2(×2) voxels into channels before the first level.
    `groups` of the norms: 32 in the papers; 8 is several times faster on a CPU at widths below 128.
    """

    kind: Literal["unet"] = "unet"
    width: int = Field(default=128, ge=8)
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    blocks: int = Field(default=2, ge=1)
    attention: tuple[int, ...] = (4,)
    heads: int = Field(default=1, ge=1)
    head_width: int | None = Field(default=None, ge=8)
    time_embedding: Literal["adaptive", "additive"] = "additive"
    resampling: Literal["residual", "plain"] = "plain"
    stem: int = Field(default=1, ge=1, le=4)
    groups: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    classes: int = Field(default=0, ge=0)
    covariates: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "UNetSettings":
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError("multipliers must be positive, one for each level")
        beyond = [level for level in self.attention if not 0 <= level < len(self.multipliers)]
        if beyond:
            raise ValueError(f"attention at level {beyond[0]}, but the levels are 0 … {len(self.multipliers) - 1}")
        for level in self.attention:
            channels, part = self.width * self.multipliers[level], self.head_width or self.heads
            if channels % part:
                raise ValueError(f"{channels} channels at level {level} do not divide by {part}")
        return self

    def build(self, *, dims: int, channels: int, outputs: int, image_channels: int = 0) -> "UNet":
        """A network from [B, channels, *S] and a condition image of `image_channels` to [B, outputs, *S]."""
        return UNet(self, dims=dims, channels=channels, outputs=outputs, image_channels=image_channels)


class UNet(nn.Module):
    """f(x_t, t, condition): x_t [B, C, *S] with *S of any size, t [B] or [1] (one time for all) → [B, outputs, *S]."""

    def __init__(
        self, settings: UNetSettings, *, dims: int, channels: int, outputs: int, image_channels: int = 0
    ) -> None:
        super().__init__()
        self.settings, self.dims = settings, dims
        width, fold = settings.width, settings.stem**dims
        embedded = 4 * width
        self.embed_time = nn.Sequential(nn.Linear(width, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.embed_known = KnownFacts(settings.classes, settings.covariates, embedded)
        self.blank_image = nn.Parameter(torch.zeros(1, image_channels, *(1,) * dims)) if image_channels else None

        block = _BlockMaker(settings, dims, embedded)
        wide = [width * multiplier for multiplier in settings.multipliers]
        self.stem = CONVOLUTION[dims]((channels + image_channels) * fold, width, 3, padding=1)
        self.down, here, skips = nn.ModuleList(), width, [width]
        for level, out in enumerate(wide):
            for _ in range(settings.blocks):
                self.down.append(block.with_attention(here, out, level))
                here = out
                skips.append(here)
            if level < len(wide) - 1:
                self.down.append(Chain([block.resample(here, "down")]))
                skips.append(here)
        attend = [block.attention(here)] if settings.attention else []
        self.middle = Chain([block.residual(here, here), *attend, block.residual(here, here)])
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(wide))):
            for i in range(settings.blocks + 1):
                chain = block.with_attention(here + skips.pop(), out, level)
                here = out
                if level > 0 and i == settings.blocks:
                    chain.append(block.resample(here, "up"))
                self.up.append(chain)
        self.head = nn.Sequential(
            GroupNorm(here, settings.groups), nn.SiLU(), zeroed(CONVOLUTION[dims](here, outputs * fold, 3, padding=1))
        )

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        size = x_t.shape[2:]
        x = self._fold(self._pad(self._with_image(x_t, condition)))
        embedding = self.embed_known(self.embed_time(sinusoids(t, self.settings.width).to(x_t.dtype)), condition)
        h = self.stem(x)
        seen = [h]
        for block in self.down:
            h = block(h, embedding)
            seen.append(h)
        h = self.middle(h, embedding)
        for block in self.up:
            h = block(torch.cat([h, seen.pop()], dim=1), embedding)
        whole = self._unfold(self.head(h))
        return whole[(slice(None), slice(None), *(slice(n) for n in size))]

    def _with_image(self, x_t: Tensor, condition: Condition) -> Tensor:
        """x_t with the condition image behind it; the learned blank where it is not known."""
        if self.blank_image is None:
            return x_t
        assert condition.image is not None, "this network was built for a condition image"
        image = condition.image.to(x_t.dtype)
        if condition.kept is not None:
            kept = condition.kept.view(-1, *(1,) * (image.ndim - 1))
            image = torch.where(kept, image, self.blank_image.to(image.dtype))
        return torch.cat([x_t, image], dim=1)

    def _pad(self, x: Tensor) -> Tensor:
        """Repeat the far edge until every level halves evenly."""
        step = self.settings.stem * 2 ** (len(self.settings.multipliers) - 1)
        missing = [-n % step for n in reversed(x.shape[2:])]
        if not any(missing):
            return x
        return functional.pad(x, [side for n in missing for side in (0, n)], mode="replicate")

    def _fold(self, x: Tensor) -> Tensor:
        """Space to depth: [B, C, *S] → [B, C stem^dims, *S / stem]."""
        if self.settings.stem == 1:
            return x
        batch, channels, *size = x.shape
        parts = [n for side in size for n in (side // self.settings.stem, self.settings.stem)]
        inner = [3 + 2 * axis for axis in range(self.dims)]
        outer = [2 + 2 * axis for axis in range(self.dims)]
        folded = x.reshape(batch, channels, *parts).permute(0, 1, *inner, *outer)
        return folded.reshape(batch, -1, *(side // self.settings.stem for side in size))

    def _unfold(self, x: Tensor) -> Tensor:
        """Depth to space, the inverse of `_fold`."""
        if self.settings.stem == 1:
            return x
        batch, channels, *size = x.shape
        stem, dims = self.settings.stem, self.dims
        parts = x.reshape(batch, channels // stem**dims, *(stem,) * dims, *size)
        mixed = [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
        return parts.permute(0, 1, *mixed).reshape(batch, -1, *(side * stem for side in size))


class KnownFacts(nn.Module):
    """Label and covariates added to the time embedding; learned blanks where they are not known."""

    def __init__(self, classes: int, covariates: int, embedded: int) -> None:
        super().__init__()
        self.label = nn.Embedding(classes + 1, embedded) if classes else None  # the last row is the blank
        self.covariates = nn.Linear(covariates, embedded) if covariates else None
        self.blank_covariates = nn.Parameter(torch.zeros(embedded)) if covariates else None

    def forward(self, embedding: Tensor, condition: Condition) -> Tensor:
        """[B, D] → [B, D]."""
        if self.label is not None:
            blank = self.label.num_embeddings - 1
            label = condition.label
            if label is None:
                label = torch.full((len(embedding),), blank, device=embedding.device)
            elif condition.kept is not None:
                label = torch.where(condition.kept, label, blank)
            embedding = embedding + self.label(label)
        if self.covariates is not None and self.blank_covariates is not None:
            if condition.covariates is None:
                return embedding + self.blank_covariates
            known = self.covariates(condition.covariates.to(embedding.dtype))
            if condition.kept is not None:
                known = torch.where(condition.kept[:, None], known, self.blank_covariates.to(known.dtype))
            embedding = embedding + known
        return embedding


class _BlockMaker:
    """The blocks of one U-Net, made alike."""

    def __init__(self, settings: UNetSettings, dims: int, embedded: int) -> None:
        self.settings, self.dims, self.embedded = settings, dims, embedded

    def residual(self, channels: int, out: int, resize: nn.Module | None = None) -> Residual:
        return Residual(
            channels,
            out,
            self.embedded,
            dims=self.dims,
            groups=self.settings.groups,
            adaptive=self.settings.time_embedding == "adaptive",
            dropout=self.settings.dropout,
            resize=resize,
        )

    def attention(self, channels: int) -> Attention:
        width, heads = self.settings.head_width, self.settings.heads
        return Attention(channels, channels // width if width else heads, self.settings.groups)

    def with_attention(self, channels: int, out: int, level: int) -> Chain:
        attend = [self.attention(out)] if level in self.settings.attention else []
        return Chain([self.residual(channels, out), *attend])

    def resample(self, channels: int, way: Literal["down", "up"]) -> nn.Module:
        if self.settings.resampling == "plain":
            return Resample(channels, self.dims, way)
        pool = POOLING[self.dims](2) if way == "down" else nn.Upsample(scale_factor=2, mode="nearest")
        return self.residual(channels, channels, pool)

"""An autoencoder: a U-Net without skip connections, so that everything it says has passed through a narrow code.

Baur et al., Autoencoders for Unsupervised Anomaly Segmentation in Brain MR Images: A Comparative Study, Medical Image
Analysis 2021, arXiv 2004.03271. A dense code would tie the weights to one image size: this one lies on the deepest grid.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.blocks import CONVOLUTION, Conditioning, cropped, head, sinusoids
from medseg_diff.networks.encoder import BlockMaker, EncoderSettings, padded, pixel_shuffle, pixel_unshuffle
from medseg_diff.networks.norm import GroupNormSiLU
from medseg_diff.networks.unet import Axes


class BottleneckSettings(EncoderSettings):
    """Size and kind of encoder and decoder, and the channels of the `code` between them, on the deepest grid.

    What can pass is the code's channels times the places of that grid: more levels make it narrower, too.
    """

    kind: Literal["bottleneck"] = "bottleneck"
    code: int = Field(default=16, ge=1, le=2048)

    def build(self, *, dims: int, channels: int, outputs: int, image_channels: int = 0) -> "Bottleneck":
        """A network from [B, channels, *S] to [B, outputs, *S]; `image_channels` of a condition are not looked at."""
        return Bottleneck(self, dims=dims, channels=channels, outputs=outputs)


class Bottleneck(nn.Module):
    """f(x_t, t) = decode(encode(x_t)): x_t [B, C, *S] with *S of any size, t [B] or [1] (one for all) → [B, outputs, *S].

    The condition is not looked at: it is there because every network is called alike.
    """

    def __init__(self, settings: BottleneckSettings, *, dims: int, channels: int, outputs: int) -> None:
        super().__init__()
        self.settings, self.dims = settings, dims
        width, fold, convolution = settings.width, settings.stem**dims, CONVOLUTION[dims]
        embedded = settings.embedded
        self.embed_time = nn.Sequential(nn.Linear(width, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        block = BlockMaker(settings, dims, embedded)
        self.stem = convolution(channels * fold, width, 3, padding=1)
        self.down, widths = block.way_down()
        deepest = widths[-1]
        self.last = block.middle(deepest)
        self.norm = GroupNormSiLU(deepest, settings.groups)
        self.to_code = convolution(deepest, settings.code, 1)
        self.from_code = convolution(settings.code, deepest, 1)
        self.first = block.middle(deepest)
        self.up, here = block.way_up(deepest, [0] * len(widths))
        self.head = head(here, outputs * fold, dims=dims, groups=settings.groups)

    def channel_axes(self, x: Sequence[str], image: Sequence[str], outputs: Sequence[str]) -> Axes:
        """As of a `UNet`; it looks at x_t alone."""
        head = {f"head.2.{name}": (0, tuple(outputs)) for name in ("weight", "bias")}
        return {"stem.weight": (1, tuple(x)), **head}

    def encode(self, x_t: Tensor, shown: Conditioning) -> Tensor:
        """[B, C, *S] → the code [B, K, *R] on the deepest grid."""
        h = self.stem(pixel_unshuffle(padded(x_t, self.settings.step), self.settings.stem))
        for block in self.down:
            h = block(h, shown)
        return self.to_code(self.norm(self.last(h, shown)))

    def decode(self, code: Tensor, shown: Conditioning) -> Tensor:
        """The code [B, K, *R] → [B, outputs, *S], with *S a multiple of the network's step."""
        h = self.first(self.from_code(code), shown)
        for block in self.up:
            h = block(h, shown)
        return pixel_shuffle(self.head(h), self.settings.stem)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        shown = Conditioning(self.embed_time(sinusoids(t, self.settings.width).to(x_t.dtype)))
        return cropped(self.decode(self.encode(x_t, shown), shown), x_t.shape[2:])

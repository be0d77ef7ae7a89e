"""What an anomaly engine is: settings that name the networks they need, and the way from images to evidence.

Everything behind an engine (normative mean, threshold, components, tables, pictures, evaluation) knows `Evidence` alone.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion import AnySolver, Condition, NoiseSchedule, walk
from medseg_diff.diffusion.denoiser import AnyDenoiser, Network, Target
from medseg_diff.diffusion.hiding import Hiding, brain_of
from medseg_diff.diffusion.noise import NoiseSource
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.methods.batches import index_of
from medseg_diff.settings import ChannelName, Settings
from medseg_diff.spaces import PLAIN, Space

Cohort = Literal["all", "healthy", "tissue"]  # all slices, the healthy ones, or the healthy voxels of all
Conditioning = Literal["nothing", "rest", "image"]  # nothing, what is not hidden of the image, or all of it
Facts = Mapping[str, Tensor]
LEAST_DEVIATION = 0.1  # of a healthy value in [-1, 1]: whatever is surer has not seen the scanner at hand


class Networks(NamedTuple):
    """What an engine works with: its trained networks, the space that they live in, the names of an image's channels, the
    value that stands outside the brain, and what was measured of healthy brains (`Engine.measure`)."""

    denoiser: AnyDenoiser
    classifier: Network | None = None
    channels: tuple[str, ...] = ()
    space: Space = PLAIN
    background: float = -1.0
    reference: Mapping[str, float] = {}

    def brain(self, image: Tensor) -> Tensor:
        """Where an image [B, C, *S] is not background, [B, 1, *S]."""
        return brain_of(image, self.background)


class Decoding(NamedTuple):
    """How a reconstruction is decoded, in the order of `walk`'s arguments: from x at times[0] to the healthy x_0."""

    denoiser: AnyDenoiser
    solver: AnySolver
    x: Tensor
    times: list[int]
    condition: Condition = Condition()
    noise: NoiseSource | None = None


class Evidence(NamedTuple):
    """What an engine says of a batch of slices or pieces.

    score [B, 1, *S]; healthy [B, C, *S] the pseudo-healthy reconstruction, where the engine makes one; `facts` [B] each,
    for the engine's own quality checks; `baselines` [B, 1, *S] each: maps that the same networks give, where asked for.
    """

    score: Tensor
    healthy: Tensor | None = None
    facts: Facts = {}  # noqa: RUF012  # nobody writes into it
    baselines: Mapping[str, Tensor] = {}


class Check(NamedTuple):
    """One quality check: its name, what was measured, and the warning where that is out of bounds."""

    name: str
    values: Mapping[str, float | int | bool | None]
    warning: str | None = None


class Engine(Settings):
    """The contract: settings that name their `networks`, which are trained one after the other, what the denoiser learns
    from and what it is conditioned on, and turn an image into evidence. `anomaly --sweep` tries the settings `swept`.
    """

    learns_from: ClassVar[Cohort] = "all"
    conditioned_on: ClassVar[Conditioning] = "nothing"
    targets: ClassVar[tuple[Target, ...]] = ("noise", "clean", "velocity")  # what its denoiser may predict
    wants_deviation: ClassVar[bool] = False  # of each value that its denoiser predicts
    follows_classifier: ClassVar[bool] = True  # where it has one: a classifier that guesses then leads nowhere
    swept: ClassVar[tuple[str, ...]] = ()
    in_latent: ClassVar[bool] = False  # whether it works in a latent space, and in no other
    learned: ClassVar[tuple[str, ...]] = ()  # settings that its networks have learned, so that they are fixed

    network_batch: int = Field(default=32, ge=1, le=4096)

    @property
    def networks(self) -> tuple[str, ...]:
        """What it needs: a denoiser, and maybe a classifier."""
        return ("denoiser",)

    @property
    def needs_labels(self) -> bool:
        """Whether its denoiser is conditioned on healthy or diseased."""
        return False

    @property
    def named_channels(self) -> tuple[str, ...]:
        """The channels that its settings name."""
        return ()

    @property
    def hiding(self) -> Hiding:
        """What is hidden while its denoiser learns, of an engine whose denoiser is conditioned on the `rest`."""
        raise AssertionError(f"{type(self).__name__} hides nothing")

    def learned_times(self, schedule: NoiseSchedule, deepest: int) -> tuple[int, int]:
        """The first and the last time that its denoiser learns, of networks that learn up to `deepest`."""
        return 1, deepest

    @property
    @abstractmethod
    def evaluations(self) -> dict[str, int]:
        """NFE of each network for one slice; a gradient of the classifier counts as one."""

    @abstractmethod
    def deepest(self, schedule: NoiseSchedule) -> int:
        """The noisiest time of 1 … `deepest` that it asks its networks about. Raises: UsageError where it does not fit the
        schedule."""

    @abstractmethod
    def score(self, image: Tensor, networks: Networks, noise: NoiseSource, *, baselines: bool = False) -> Evidence:
        """The evidence of image [B, C, *S]; what it draws comes from `noise`, whose rows belong to the samples."""

    def round_trip(self, image: Tensor, networks: Networks) -> Tensor | None:
        """The image [B, C, *S] encoded and decoded without any push, where the engine can do that."""
        return None

    def measure(self, image: Tensor, networks: Networks, noise: NoiseSource) -> Tensor | None:
        """Values [B, N] of a healthy image [B, C, *S] whose usual size it has to know before it scores anything; NaN where
        there is nothing to measure."""
        return None

    def of_healthy(self, measured: Tensor) -> dict[str, float]:
        """What of these values [N] of all healthy brains is kept, for `Networks.reference`."""
        return {}

    def reference(self, facts: Facts) -> dict[str, float]:
        """What the calibration keeps of the facts of healthy slices, for `checks`."""
        return {}

    def checks(self, facts: Facts, reference: Mapping[str, float]) -> list[Check]:
        """The quality checks of one volume: the facts [N] of its slices against those of healthy brains."""
        return []


class Difference(Engine):
    """What engines share that score the difference of two images, x and x'.

    The score is Σ over `map_channels` (none: all) of |x - x'| (`absolute`), of what is brighter in x (`positive`), or of the
    squared difference (`squared`).
    """

    map: Literal["absolute", "positive", "squared"] = "absolute"
    map_channels: tuple[ChannelName, ...] = ()

    @property
    def named_channels(self) -> tuple[str, ...]:
        return self.map_channels

    def difference(self, image: Tensor, healthy: Tensor, channels: tuple[str, ...] = ()) -> Tensor:
        """The score [B, 1, *S] of x and x', both [B, C, *S]."""
        change = image - healthy
        if self.map_channels:
            change = change[:, index_of([channels.index(name) for name in self.map_channels], change)]
        size = {"absolute": torch.abs, "positive": torch.relu, "squared": torch.square}[self.map]
        return size(change).sum(dim=1, keepdim=True)


class Comparison(Difference):
    """What engines share that compare two images at times of the schedule's 0 … T up to `depth`.

    `steps` is how many times; `spacing` of them: `even`, or `quadratic` with short steps near the image.
    """

    swept: ClassVar[tuple[str, ...]] = ("depth", "steps")

    depth: int = Field(default=250, ge=1, le=LONGEST)
    steps: int = Field(default=10, ge=1, le=LONGEST)
    spacing: Literal["even", "quadratic"] = "even"

    def deepest(self, schedule: NoiseSchedule) -> int:
        return self.times(schedule)[-1]

    def times(self, schedule: NoiseSchedule) -> list[int]:
        """The times from 0 up to `depth`.

        Raises: UsageError where so many steps do not fit below `depth`, or the schedule ends before it.
        """
        even = schedule.times(self.steps, start=0, stop=self.depth)
        if self.spacing == "even":
            return even
        times = [0]
        for i in range(1, self.steps + 1):  # whole numbers, each above the one before
            times.append(max(times[-1] + 1, math.floor(self.depth * (i / self.steps) ** 2 + 0.5)))
        return times


class Reconstruction(Comparison):
    """What engines share that take an image up to a noise level and back to a pseudo-healthy one, in as many steps, and
    compare the two. The decoding takes the list of times reversed."""

    @abstractmethod
    def decoding(self, x: Tensor, networks: Networks, noise: NoiseSource | None = None) -> Decoding:
        """x_0 [B, D, *S] in the networks' space taken up to `depth`, and how it is to come back."""

    def reconstruct(self, x: Tensor, networks: Networks, noise: NoiseSource | None = None) -> Tensor:
        """The pseudo-healthy x_0 [B, D, *S]."""
        return walk(*self.decoding(x, networks, noise))

    def score(self, image: Tensor, networks: Networks, noise: NoiseSource, *, baselines: bool = False) -> Evidence:
        healthy = networks.space.decode(self.reconstruct(networks.space.encode(image), networks, noise))
        return Evidence(self.difference(image, healthy, networks.channels), healthy)

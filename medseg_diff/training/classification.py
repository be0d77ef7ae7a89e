"""Learning to tell diseased from healthy slices through any amount of noise, and measuring how well, time by time."""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import Network
from medseg_diff.diffusion.losses import noised
from medseg_diff.diffusion.noise import AnyNoise, GaussianNoise, SeededNoise
from medseg_diff.diffusion.schedule import NoiseSchedule
from medseg_diff.seeds import seed_of
from medseg_diff.spaces import PLAIN, Space
from medseg_diff.training.denoising import draw_times_and_noise
from medseg_diff.training.objective import Turn


@dataclass(eq=False)
class NoisyClassification:
    """Cross-entropy of the image's label given x_t in a space, at times 1 … `deepest` (None: the whole schedule).

    Every image of a batch must have a label that is known.
    """

    classifier: nn.Module
    schedule: NoiseSchedule
    _: KW_ONLY
    seed: int
    rank: int = 0
    space: Space = PLAIN
    deepest: int | None = None
    noise: AnyNoise = GaussianNoise()

    def __post_init__(self) -> None:
        self.models: dict[str, nn.Module] = {"classifier": self.classifier}

    def adopt(self, name: str, model: nn.Module) -> None:
        self.classifier = model

    def turns(self, batch: Batch, step: int) -> Iterator[Turn]:
        labels = batch.label
        assert labels is not None
        clean = self.space.encode(batch.image)
        own = seed_of(self.seed, "classification", self.rank, step)
        deepest = self.deepest or self.schedule.length
        t, noise = draw_times_and_noise(clean, own, deepest=deepest, kind=self.noise)
        x_t = noised(clean, noise, self.schedule.level(t, like=clean))
        logits = self.classifier(x_t, t, Condition()).float()
        right = (logits.argmax(dim=1) == labels).float().mean()
        yield Turn("classifier", functional.cross_entropy(logits, labels), {"accuracy": right})


class Skill(NamedTuple):
    """How well labels are told apart at time t: the mean of the two classes' accuracies, and the area under the ROC."""

    t: int
    balanced_accuracy: float
    auroc: float
    cross_entropy: float


def skill_by_time(
    classifier: Network,
    schedule: NoiseSchedule,
    image: Tensor,
    labels: Tensor,
    times: Sequence[int],
    *,
    seed: int,
    space: Space = PLAIN,
    kind: AnyNoise = GaussianNoise(),
    batch: int = 64,
) -> list[Skill]:
    """One noise a slice and time: image [N, C, *S], labels [N] of 0 and 1 (both must be there).

    Chance is 0.5 in both measures, whatever share of the slices is diseased.
    """
    found = []
    for t in times:
        level = schedule.level(t)
        parts = []
        for start in range(0, len(image), batch):
            clean = space.encode(image[start : start + batch])
            noise = SeededNoise([seed_of(seed, "skill", t, start + i) for i in range(len(clean))], kind)(clean, 0)
            with torch.no_grad():
                logits = classifier(noised(clean, noise, level), torch.full((1,), t, device=image.device), Condition())
            parts.append(logits.float().cpu())
        logits = torch.cat(parts)
        found.append(Skill(t, *_skill(logits, labels.cpu())))
    return found


def _skill(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Balanced accuracy, AUROC (ties count half) and cross-entropy of logits [N, 2]."""
    score = logits[:, 1] - logits[:, 0]
    diseased, healthy = score[labels == 1], score[labels == 0]
    accuracy = ((diseased > 0).double().mean() + (healthy <= 0).double().mean()) / 2
    above = (diseased[:, None] > healthy[None]).double() + 0.5 * (diseased[:, None] == healthy[None]).double()
    return float(accuracy), float(above.mean()), float(functional.cross_entropy(logits, labels))

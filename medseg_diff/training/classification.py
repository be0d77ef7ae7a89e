"""Learning to tell diseased from healthy slices through any amount of noise, and measuring how well, time by time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.data.datasets.labelled import slice_labels
from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import Network
from medseg_diff.diffusion.losses import noised
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.diffusion.schedule import NoiseSchedule
from medseg_diff.seeds import seed_of
from medseg_diff.training.denoising import draw_times_and_noise
from medseg_diff.training.objective import Turn


class NoisyClassification:
    """Cross-entropy of the slice's label given x_t of the image × `image_scale`, at times 1 … `deepest`.

    Batches must hold slices with a label only.
    """

    def __init__(
        self,
        classifier: nn.Module,
        schedule: NoiseSchedule,
        *,
        seed: int,
        rank: int = 0,
        image_scale: float = 1.0,
        deepest: int | None = None,
    ) -> None:
        self.classifier, self.schedule, self.seed, self.rank = classifier, schedule, seed, rank
        self.image_scale, self.deepest = image_scale, deepest or schedule.length
        self.models: dict[str, nn.Module] = {"classifier": classifier}

    def adopt(self, name: str, model: nn.Module) -> None:
        self.classifier = model

    def turns(self, batch: Batch, step: int) -> Iterator[Turn]:
        labels = slice_labels(batch.mask)
        clean = batch.image * self.image_scale
        own = seed_of(self.seed, "classification", self.rank, step)
        t, noise = draw_times_and_noise(clean, own, deepest=self.deepest)
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
    image_scale: float = 1.0,
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
            clean = image[start : start + batch] * image_scale
            noise = SeededNoise([seed_of(seed, "skill", t, start + i) for i in range(len(clean))])(clean, 0)
            with torch.no_grad():
                logits = classifier(noised(clean, noise, level), torch.full((1,), t, device=image.device), Condition())
            parts.append(logits.float().cpu())
        logits = torch.cat(parts)
        found.append(Skill(t, *_skill(logits, labels.cpu())))
    return found


def _skill(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Balanced accuracy, AUROC (ties count half) and cross-entropy of logits [N, 2]."""
    score = logits[:, 1] - logits[:, 0]
    ill, well = score[labels == 1], score[labels == 0]
    accuracy = ((ill > 0).double().mean() + (well <= 0).double().mean()) / 2
    above = (ill[:, None] > well[None]).double() + 0.5 * (ill[:, None] == well[None]).double()
    return float(accuracy), float(above.mean()), float(functional.cross_entropy(logits, labels))

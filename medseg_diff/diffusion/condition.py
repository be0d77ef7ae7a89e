"""Everything a network may look at besides x_t, as one typed object."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Condition(NamedTuple):
    """What is known beforehand. Absent parts are None.

    image [B, C, *S], mask [B, C, *S], label [B] integers, covariates [B, K], context [B, N, D] tokens.
    `keep` [B] booleans: where False, a network puts its own *learned* null embedding in the place of every part it has.
    """

    image: Tensor | None = None
    mask: Tensor | None = None
    label: Tensor | None = None
    covariates: Tensor | None = None
    context: Tensor | None = None
    keep: Tensor | None = None

    @property
    def batch(self) -> int | None:
        """B, or None for an empty condition."""
        return next((len(part) for part in self._parts().values()), None)

    def null(self) -> "Condition":
        """The same condition with nothing known, for classifier-free guidance."""
        return self._keeping(False)

    def drop(self, dropped: Tensor) -> "Condition":
        """Blank the samples where `dropped` [B] is True (classifier-free training)."""
        kept = ~dropped if self.keep is None else self.keep & ~dropped
        return self._replace(keep=kept)

    def repeat(self, n: int) -> "Condition":
        """Each sample n times, one after the other (an ensemble): [B, …] → [B n, …]."""
        return self._each(lambda part: part.repeat_interleave(n, dim=0))

    def take(self, index: Tensor | slice) -> "Condition":
        """Some of the samples."""
        return self._each(lambda part: part[index])

    def beside(self, other: "Condition") -> "Condition":
        """This batch followed by another that has the same parts."""
        # `keep` is spelled out, so that a full and a null condition can stand in one batch.
        return one_after_another([each if each.keep is not None else each._keeping(True) for each in (self, other)])

    def _keeping(self, keep: bool) -> "Condition":
        """With `keep` the same for every sample; an empty condition stays empty."""
        part = next(iter(self._parts().values()), None)
        return self if part is None else self._replace(keep=torch.full((len(part),), keep, device=part.device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        return self._replace(**{name: change(part) for name, part in self._parts().items()})

    def _parts(self) -> dict[str, Tensor]:
        return {name: part for name, part in self._asdict().items() if part is not None}


def one_after_another(conditions: Sequence[Condition]) -> Condition:
    """Batches that have the same parts, as one."""
    if not conditions:
        return Condition()
    parts = [condition._parts() for condition in conditions]
    return conditions[0]._replace(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

"""Everything a network may look at besides x_t, as one typed object."""

from collections.abc import Callable
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
        parts = self._parts()
        if not parts:
            return self
        first = next(iter(parts.values()))
        return self._replace(keep=torch.zeros(len(first), dtype=torch.bool, device=first.device))

    def drop(self, dropped: Tensor) -> "Condition":
        """Blank the samples where `dropped` [B] is True (classifier-free training)."""
        kept = ~dropped if self.keep is None else self.keep & ~dropped
        return self._replace(keep=kept)

    def repeat(self, n: int) -> "Condition":
        """Each sample n times, one after the other (an ensemble): [B, …] → [B n, …]."""
        return self._each(lambda part: part.repeat_interleave(n, dim=0))

    def to(self, device: torch.device | str) -> "Condition":
        """On another device."""
        return self._each(lambda part: part.to(device))

    def take(self, index: Tensor | slice) -> "Condition":
        """Some of the samples."""
        return self._each(lambda part: part[index])

    def beside(self, other: "Condition") -> "Condition":
        """This batch followed by another that has the same parts."""
        mine, theirs = self._parts(), other._parts()
        mine, theirs = _with_kept(mine, self.batch), _with_kept(theirs, other.batch)
        return self._replace(**{name: torch.cat([part, theirs[name]]) for name, part in mine.items()})

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        return self._replace(**{name: change(part) for name, part in self._parts().items()})

    def _parts(self) -> dict[str, Tensor]:
        return {name: part for name, part in self._asdict().items() if part is not None}


def _with_kept(parts: dict[str, Tensor], batch: int | None) -> dict[str, Tensor]:
    """`keep` spelled out, so that a full and a null condition can stand in one batch."""
    if not parts or "keep" in parts:
        return parts
    device = next(iter(parts.values())).device
    return parts | {"keep": torch.ones(batch or 0, dtype=torch.bool, device=device)}

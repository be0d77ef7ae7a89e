"""`selftest`: the exact-answer laws of the engine on this machine."""

import time
from dataclasses import dataclass

from medseg_diff.console import bar


@dataclass(frozen=True)
class Verdict:
    """One law, what was measured, and the bound it must not exceed."""

    law: str
    measured: float
    bound: float
    seconds: float

    @property
    def holds(self) -> bool:
        return self.measured <= self.bound


def selftest() -> list[Verdict]:
    """Every law of the engine, measured."""
    from medseg_diff.diffusion.laws import all_laws

    laws, verdicts = list(all_laws()), []
    with bar("laws", len(laws)) as advance:
        for law in laws:
            started = time.perf_counter()
            measured = law.measure()
            verdicts.append(Verdict(law.name, measured, law.bound, time.perf_counter() - started))
            advance()
    return verdicts

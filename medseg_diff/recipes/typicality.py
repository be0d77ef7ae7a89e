"""Does a scan look like those that a run was trained on? typicality.json, and what is said of a scan unlike them."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from medseg_diff.files import write_json
from medseg_diff.metrics import typicality
from medseg_diff.metrics.typicality import Feature
from medseg_diff.run import Run
from medseg_diff.settings import Settings, read_measured


class Typicality(Settings):
    """Of so many `cases`: whether they are `phantoms`, how many have each of the reference's `labels`, mean and deviation of
    each feature, and the score above which a scan is unlike them."""

    cases: int
    phantoms: bool = False
    labels: dict[int, int] = Field(default_factory=dict)
    threshold: float
    features: dict[str, tuple[float, float]]

    def judge(self, appearance: Mapping[str, float]) -> dict[str, Any] | None:
        """`score`, `threshold` and, in words, what is `striking` about a scan; None where nothing can be compared."""
        features = {name: Feature(*numbers) for name, numbers in self.features.items()}
        judged = typicality.judge(appearance, features)
        if judged is None:
            return None
        striking = [typicality.in_words(name, appearance[name], features[name]) for name in judged.striking]
        return {"score": round(judged.score, 3), "threshold": self.threshold, "striking": striking}


def write_typicality(
    run: Run, appearances: Sequence[Mapping[str, float]], *, phantoms: bool, labels: Mapping[int, int] | None = None
) -> None:
    """RUN/typicality.json, of the cases trained on; the run is to be sealed after it. Raises: EnvironmentFault."""
    features = {name: (each.mean, each.deviation) for name, each in typicality.features_of(appearances).items()}
    threshold = typicality.threshold_of(appearances)
    found = Typicality(
        cases=len(appearances), phantoms=phantoms, labels=dict(labels or {}), threshold=threshold, features=features
    )
    write_json(run.typicality_file, found.model_dump(mode="json"))


def read_typicality(run: Run) -> Typicality | None:
    """What the run measured; None for a run without. Raises: CheckpointError where the file is not what was written."""
    return read_measured(run.typicality_file, Typicality)


def judged(known: Sequence[Typicality], appearance: Mapping[str, float]) -> dict[str, Any] | None:
    """What that of several runs says that finds the scan most like its own cases."""
    found = [said for each in known if (said := each.judge(appearance))]
    return min(found, key=lambda said: said["score"] / said["threshold"], default=None)


def is_unlike(said: Mapping[str, Any] | None) -> bool:
    """Whether the score is above its threshold."""
    return said is not None and said["score"] > said["threshold"]


def warnings_of(said: Mapping[str, Any] | None, *, of_phantoms: bool) -> list[str]:
    """One where the scan is unlike, and one where phantoms were learned from and it is none (`of_phantoms`)."""
    warnings = []
    if of_phantoms:
        warnings.append("the model was trained on phantoms, simulated brains: its results on a real scan are worthless")
    if said and is_unlike(said):
        why = "; ".join(said["striking"]) or "many small differences, none of them striking"
        warnings.append(
            f"looks unlike the scans that the model was trained on ({said['score']} is above {said['threshold']}): {why}"
        )
    return warnings

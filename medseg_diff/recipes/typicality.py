"""Does a scan look like those that a run was trained on? typicality.json, and what is said of a scan unlike them."""

from collections.abc import Mapping, Sequence
from typing import Any

from medseg_diff.files import write_json
from medseg_diff.metrics import typicality
from medseg_diff.metrics.typicality import Feature
from medseg_diff.run import Run
from medseg_diff.settings import Settings, read_measured


class Typicality(Settings):
    """Of so many `cases`: mean and deviation of each feature, and the score above which a scan is unlike them."""

    cases: int
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


def write_typicality(run: Run, appearances: Sequence[Mapping[str, float]]) -> None:
    """RUN/typicality.json, of the cases trained on; the run is to be sealed after it. Raises: EnvironmentFault."""
    features = {name: (each.mean, each.deviation) for name, each in typicality.features_of(appearances).items()}
    found = Typicality(cases=len(appearances), threshold=typicality.threshold_of(appearances), features=features)
    write_json(run.typicality_file, found.model_dump(mode="json"))


def read_typicality(run: Run) -> Typicality | None:
    """What the run measured; None for a run without. Raises: CheckpointError where the file is not what was written."""
    return read_measured(run.typicality_file, Typicality)


def judged(known: Sequence[Typicality], appearance: Mapping[str, float]) -> dict[str, Any] | None:
    """What that of several runs says that finds the scan most like its own cases."""
    found = [said for each in known if (said := each.judge(appearance))]
    return min(found, key=lambda said: said["score"] / said["threshold"], default=None)


def warning_of(said: Mapping[str, Any] | None) -> list[str]:
    """A warning where the score is above its threshold."""
    if said is None or said["score"] <= said["threshold"]:
        return []
    why = "; ".join(said["striking"]) or "many numbers, none of them striking"
    return [
        f"looks unlike the scans that the model was trained on ({said['score']} is above {said['threshold']}): {why}"
    ]

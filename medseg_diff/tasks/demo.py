"""`demo`: the whole main job on phantoms, from nothing to numbers and a picture, in minutes on a laptop."""

import time
from pathlib import Path
from typing import Any

from medseg_diff.errors import UsageError
from medseg_diff.reporting.figures import montage_of_predictions
from medseg_diff.tasks.console import log
from medseg_diff.tasks.evaluate import evaluate
from medseg_diff.tasks.phantom import phantom
from medseg_diff.tasks.segment import segment
from medseg_diff.tasks.train_seg import train_seg
from medseg_diff.training.estimate import in_words

CASES = 60
RATERS = 3


def demo(
    out: Path = Path("demo"),
    *,
    cases: int = CASES,
    seed: int = 0,
    device: str = "auto",
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Make phantoms, train, segment the held-out ones, evaluate, draw. Returns the metrics.

    Raises: UsageError where `out` holds something that is not an earlier demo.
    """
    started = time.perf_counter()
    if out.exists() and any(out.iterdir()) and not (out / "phantoms").is_dir():
        raise UsageError(f"{out.name} holds other files", fix="choose another --out")
    log.info("1/4 making %d phantom brains", cases)
    data = phantom(out / "phantoms", cases=cases, raters=RATERS, seed=seed, overwrite=True)
    log.info("2/4 training")
    model = _fresh(out / "runs" / "segment")
    train_seg(data, config="quick/phantom", out=model, device=device, runs=out / "runs", overrides=overrides)
    log.info("3/4 segmenting the held-out phantoms")
    segment(
        data=data,
        split="test",
        model=model,
        out=out / "segment",
        seed=seed,
        save_members=True,
        overwrite=True,
        device=device,
    )
    log.info("4/4 evaluating")
    metrics = evaluate(out / "segment", data, split="test")
    montage_of_predictions(out / "segment", data, out / "montage.png")
    log.info("done in %s", in_words(time.perf_counter() - started))
    return metrics


def _fresh(folder: Path) -> Path:
    """An empty place for a run: the one of an earlier demo is removed."""
    import shutil

    if (folder / "run.json").is_file():
        shutil.rmtree(folder)
    return folder

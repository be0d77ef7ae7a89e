"""`demo`: both main jobs on phantoms, from nothing to numbers and pictures, in minutes on a laptop."""

import time
from pathlib import Path
from typing import Any

from medseg_diff.console import duration, log
from medseg_diff.errors import UsageError
from medseg_diff.files import write_json
from medseg_diff.reporting.montage import draw_montage
from medseg_diff.tasks.apply.anomaly import anomaly
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.evaluate import evaluate
from medseg_diff.tasks.phantom import phantom
from medseg_diff.tasks.report import report
from medseg_diff.tasks.train.anomaly import train_anomaly
from medseg_diff.tasks.train.segmentation import train_seg

MARK = "demo.json"  # what is below this folder may be made anew
CASES = 100
MOST_TESTS = 10  # each is segmented and mapped, which takes longer than learning from it
RATERS = 3
PAGES = 3  # cases with pages of their own; `report` makes those of all


def demo(
    out: Path = Path("demo"),
    *,
    cases: int = CASES,
    seed: int = 0,
    device: str = "auto",
    overrides: tuple[str, ...] = (),
    anomaly_overrides: tuple[str, ...] = (),
) -> dict[str, dict[str, Any]]:
    """Make phantoms; train, segment the held-out ones, evaluate, draw; then the same for their anomalies.

    Returns the metrics of each: {"segment": …, "anomaly": …}; `overrides` are laid over the two recipes.

    Raises: UsageError where `out` holds something that is not an earlier demo.
    """
    started = time.perf_counter()
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise UsageError("holds files that are not from a demo", fix="choose another --out", file=out.name)
    write_json(out / MARK, {"schema": 1, "cases": cases, "seed": seed})
    log.info("1/7 making %d phantom brains", cases)
    held_out = min(0.2, MOST_TESTS / cases)
    data = phantom(out / "phantoms", cases=cases, raters=RATERS, held_out=held_out, seed=seed, overwrite=True)
    log.info("2/7 training the segmentation")
    model = _fresh(out / "runs" / "segment")
    train_seg(data, config="quick/phantom", out=model, device=device, runs=out / "runs", overrides=overrides)
    log.info("3/7 segmenting the held-out phantoms")
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
    log.info("4/7 evaluating")
    metrics = {"segment": evaluate(out / "segment", data, split="test", runs=out / "runs")}
    draw_montage(out / "segment", data, out / "montage.png")
    report(out / "segment", data=data, most=PAGES, runs=out / "runs")
    metrics["anomaly"] = _anomalies(out, data, device, anomaly_overrides)
    log.info("done in %s", duration(time.perf_counter() - started))
    return metrics


def _anomalies(out: Path, data: Path, device: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The second half: `out`/anomaly with its metrics and its montage."""
    log.info("5/7 training the anomaly maps")
    model, folder = _fresh(out / "runs" / "anomaly"), out / "anomaly"
    train_anomaly(
        data, config="quick/phantom_inpainting", out=model, device=device, runs=out / "runs", overrides=overrides
    )
    log.info("6/7 mapping the anomalies of the held-out phantoms")
    anomaly(data=data, split="test", model=model, out=folder, overwrite=True, device=device)
    log.info("7/7 evaluating")
    metrics = evaluate(folder, data, split="test", runs=out / "runs")
    draw_montage(folder, data, folder / "montage.png")
    report(folder, data=data, most=PAGES, runs=out / "runs")
    return metrics


def _fresh(folder: Path) -> Path:
    """An empty place for a run: the one of an earlier demo is removed."""
    import shutil

    if (folder / "run.json").is_file():
        shutil.rmtree(folder)
    return folder

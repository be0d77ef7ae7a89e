"""What every train verb does: a run folder opened or found again, its phases trained one after the other, the run sealed."""

import itertools
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric

from medseg_diff.console import duration, log, quiet, timed
from medseg_diff.data.tables.case import SPLITS
from medseg_diff.device import find_device, find_precision, make_fabric
from medseg_diff.errors import UsageError, counted
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.training.fit import FitSettings
from medseg_diff.training.phase import Bench, Phase
from medseg_diff.training.resume import Job, Resume, opened
from medseg_diff.training.runner import Course
from medseg_diff.training.watcher import Watcher, Watchers

__all__ = ["Bench", "Job", "Phase", "Resume", "seeded", "train"]

Built = TypeVar("Built")


def train(
    job: Job,
    phases: Callable[[Bench], Iterable[Phase]],
    *,
    out: Path | None = None,
    runs: Path = Path("runs"),
    device: str = "auto",
    resume: Resume | None = None,
    watchers: Iterable[Watcher] = (),
) -> Run:
    """Train what `phases` gives, one after the other, into the folder `out` or a new one below `runs`.

    `phases` is asked once the run's folder is there; a generator may build its second phase when the first is trained.
    With `resume` an unfinished run goes on where its last checkpoint stands, to the same bytes as without the break:
    the one in `out`, else the newest of the same recipe and data below `runs`. Without such a run `auto` begins a new
    one and says so, `must` is an error.
    Raises: UsageError where `out` already holds something, or processes cannot share a batch; CheckpointError where it
    cannot be continued; EnvironmentFault where another process trains in it or the disk is too full; Preempted; Diverged;
    what `phases` raises.
    """
    chosen = find_device(device)
    precision = find_precision(job.precision, chosen)
    fabric = make_fabric(chosen, precision)
    if fabric.global_rank > 0:
        quiet()
    check_shares(job.trainings, fabric.world_size)
    with _shared(job, fabric, out=out, runs=runs, resume=resume) as run:
        if run.facts["finished"]:
            log.info("%s is finished: nothing to do", run.folder)
            return run
        given = {"--runs": (runs, Path("runs")), "--device": (device, "auto"), "--out": (job.study or run.folder, None)}
        words = [str(word) for name, (value, usual) in given.items() if value != usual for word in (name, value)]
        again = shlex.join([*job.command, *words, "--resume", "auto"])
        bench = Bench(run, fabric, precision, job.recipe_sha256, job.data_digest, again)
        if fabric.global_rank == 0:
            run.note(device=chosen.type, precision=precision, **_facts_of(job))
        _train(phases, bench, Watchers(watchers if fabric.global_rank == 0 else ()))
    return run


def check_shares(trainings: Mapping[str, FitSettings], processes: int) -> None:
    """Raises: UsageError where the processes could not have as many samples each of every pass."""
    for name, each in trainings.items():
        if each.passes_batch % processes:
            whole = processes * each.accumulate
            found = (
                f"{name}.batch {each.batch} cannot be divided among {counted(processes, 'process', plural='processes')}"
            )
            raise UsageError(found, fix=f"set {name}.batch={whole * -(-each.batch // whole)}")


def seeded(seed: int, build: Callable[[], Built]) -> Built:
    """What `build` makes, its first weights drawn from the seed and the generator of everything else left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "network"))
        return build()


def _facts_of(job: Job) -> dict[str, Any]:
    """What run.json says of the table and of what was laid over the recipe."""
    cases = job.manifest.cases
    splits: Counter[str] = Counter(case.split or "train" for case in cases)
    return {
        "data": job.manifest.name,
        "cases": {split: splits[split] for split in SPLITS if splits[split]},
        "patients": len({case.patient for case in cases}),
        "overrides": list(job.overrides),
    }


@contextmanager
def _shared(job: Job, fabric: Fabric, *, out: Path | None, runs: Path, resume: Resume | None) -> Iterator[Run]:
    """The first process opens the run, the others are told its folder."""
    if fabric.global_rank > 0:
        yield Run(Path(fabric.broadcast("")))
        return
    with opened(job, out=out, runs=runs, resume=resume) as run:
        fabric.broadcast(str(run.folder))
        yield run


def _train(phases: Callable[[Bench], Iterable[Phase]], bench: Bench, watchers: Watchers) -> None:
    """Every phase, and the end."""
    started, run = time.time(), bench.run
    works = iter(phases(bench))
    with timed("data read"):
        first = list(itertools.islice(works, 1))  # nobody need hear of a table that cannot be used
    watchers.tell(lambda watcher: watcher.begin(run))
    finished = False
    weights: list[Path] = []
    try:
        for phase in itertools.chain(first, works):
            Course(phase, bench, watchers).run()
            weights += [run.weights(files["best"]) for files in phase.weights.values() if "best" in files]
        if bench.fabric.global_rank == 0:
            _finish(run)
        finished = True
    except KeyboardInterrupt:
        log.warning("stopped; to continue from the last checkpoint: %s", bench.again)
        raise
    finally:
        watchers.tell(lambda watcher: watcher.end(run, finished=finished, weights=weights))
    log.info("trained in %s: %s", duration(time.time() - started), run.folder)


def _finish(run: Run) -> None:
    """Checksums, and the word that the run is whole."""
    run.seal()
    run.note(finished=True, ended=time.time(), threads=torch.get_num_threads())

"""What every train verb does: a run folder opened or found again, its phases trained one after the other, the run sealed."""

import itertools
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from medseg_diff.console import log
from medseg_diff.data.tables.manifest import Manifest
from medseg_diff.device import find_device, find_precision, make_fabric
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.settings import Settings
from medseg_diff.tracking import Mirror
from medseg_diff.training.estimate import in_words
from medseg_diff.training.phase import Bench, Phase
from medseg_diff.training.resume import Resume, Wanted, opened
from medseg_diff.training.runner import Course

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Bench", "Job", "Phase", "Resume", "seeded", "train"]

Built = TypeVar("Built")


@dataclass(frozen=True)
class Job:
    """What a train verb was asked for: `recipe` is the name of its resolved `settings`, `command` the words that ask for
    it again, but for --runs, --device, --out and --resume. In MLflow, runs of one `parent`, a study's name, hang below
    one run."""

    task: str
    recipe: str
    settings: Settings
    manifest: Manifest
    precision: str = "auto"
    command: Sequence[str] = ("medseg-diff",)
    parent: str | None = None


def train(
    job: Job,
    phases: Callable[[Bench], Iterable[Phase]],
    *,
    out: Path | None = None,
    runs: Path = Path("runs"),
    device: str = "auto",
    mlflow: bool = True,
    resume: Resume | None = None,
) -> Run:
    """Train what `phases` gives, one after the other, into the folder `out` or a new one below `runs`.

    `phases` is asked once the run's folder is there; a generator may build its second phase when the first is trained.
    With `resume` an unfinished run goes on where its last checkpoint stands, to the same bytes as without the break:
    the one in `out`, else the newest of the same recipe and data below `runs`. Without such a run `auto` begins a new
    one and says so, `must` is an error.
    Raises: UsageError where `out` already holds something; CheckpointError where it cannot be continued;
    EnvironmentFault where another process trains in it or the disk is too full; Preempted; Diverged; what `phases` raises.
    """
    place = find_device(device)
    precision = find_precision(job.precision, place)
    fabric = make_fabric(place, precision)
    wanted = Wanted(job.task, job.recipe, job.settings, job.manifest.digest())
    with _shared(wanted, fabric, out=out, runs=runs, resume=resume) as run:
        if run.facts["finished"]:
            log.info("%s is finished: nothing to do", run.folder)
            return run
        said = {"--runs": (runs, Path("runs")), "--device": (device, "auto"), "--out": (run.folder, None)}
        words = [str(word) for name, (value, usual) in said.items() if value != usual for word in (name, value)]
        again = shlex.join([*job.command, *words, "--resume", "auto"])
        bench = Bench(run, fabric, precision, wanted.recipe_sha256, wanted.data_digest, again)
        if fabric.global_rank == 0:
            run.note(data=job.manifest.file, device=place.type, precision=precision)
        _train(job, phases, bench, runs if mlflow and fabric.global_rank == 0 else None)
    return run


def seeded(seed: int, build: Callable[[], Built]) -> Built:
    """What `build` makes, its first weights drawn from the seed and the generator of everything else left alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "network"))
        return build()


@contextmanager
def _shared(wanted: Wanted, fabric: "Fabric", *, out: Path | None, runs: Path, resume: Resume | None) -> Iterator[Run]:
    """The first process opens the run, the others are told its folder."""
    if fabric.global_rank > 0:
        yield Run(Path(fabric.broadcast("")))
        return
    with opened(wanted, out=out, runs=runs, resume=resume) as run:
        fabric.broadcast(str(run.folder))
        yield run


def _train(job: Job, phases: Callable[[Bench], Iterable[Phase]], bench: Bench, store: Path | None) -> None:
    """Every phase, and the end; MLflow is told how it went."""
    started, run = time.time(), bench.run
    works = iter(phases(bench))
    first = list(itertools.islice(works, 1))  # reads the data: MLflow need not hear of a table that cannot be used
    mirror = _open_mirror(job, bench, store) if store else None
    finished = False
    trained: list[Phase] = []
    try:
        for phase in itertools.chain(first, works):
            Course(phase, bench, mirror).run()
            trained.append(phase)
        if bench.fabric.global_rank == 0:
            _finish(run, trained, mirror)
        finished = True
    except KeyboardInterrupt:
        log.warning("stopped; go on from the last checkpoint with %s", bench.again)
        raise
    finally:
        if mirror:
            mirror.close(finished=finished)
    log.info("trained in %s: %s", in_words(time.time() - started), run.folder)


def _open_mirror(job: Job, bench: Bench, store: Path) -> Mirror:
    mirror = Mirror(
        store,
        experiment=job.task,
        name=bench.run.name,
        parameters=job.settings.model_dump(mode="json"),
        tags={"recipe": job.recipe, "data_digest": bench.data_digest},
        folder=bench.run.folder,
        parent=job.parent,
    )
    mirror.dataset(job.manifest.file, bench.data_digest)
    mirror.file(bench.run.recipe_file)
    return mirror


def _finish(run: Run, trained: Sequence[Phase], mirror: Mirror | None) -> None:
    """Curves, checksums, and the word that the run is whole."""
    import torch

    from medseg_diff.reporting.figures import training_curves

    curves = run.figures / "training.png"
    training_curves(run.metrics_file, curves)
    run.seal()
    run.note(finished=True, ended=time.time(), threads=torch.get_num_threads())
    if mirror:
        best = [run.weights(phase.weights["best"]) for phase in trained if "best" in phase.weights]
        for path in (curves, run.folder / "SHA256SUMS", run.folder / "environment.json", *best):
            mirror.file(path)

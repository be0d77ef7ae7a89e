"""Which folder a training goes into: a new one, the one that was named, or that of an unfinished run to go on with."""

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from medseg_diff.console import log
from medseg_diff.data.tables.manifest import Manifest
from medseg_diff.errors import CheckpointError, ConfigError, EnvironmentFault, MedsegError
from medseg_diff.files import clean, sha256_of
from medseg_diff.locking import locked
from medseg_diff.run import Run, create_run, new_folder
from medseg_diff.runs import all_runs
from medseg_diff.settings import Settings, flat, read_yaml, write_yaml
from medseg_diff.training.checkpoint import POINTER
from medseg_diff.training.fit import FitSettings

Resume = Literal["auto", "must"]
SHOWN_DIFFERENCES = 3


@dataclass(frozen=True)
class Job:
    """What a train verb was asked for: `recipe` is the name of its resolved `settings`, `command` the words that ask for
    it again, but for --runs, --device, --out and --resume; `study` is the --out of a run that is a fold of one; `init_from`
    what the weights begin with; `overrides` what was laid over the recipe; `trainings` how each network is trained, by the
    name of the setting. A run that it goes on with has to be of the same.
    """

    task: str
    recipe: str
    settings: Settings
    manifest: Manifest
    trainings: Mapping[str, FitSettings] = field(default_factory=dict)
    precision: str = "auto"
    command: Sequence[str] = ("medseg-diff",)
    study: Path | None = None
    init_from: Mapping[str, Any] | None = None
    overrides: Sequence[str] = ()

    @cached_property
    def text(self) -> str:
        """recipe.yaml as it is written."""
        return write_yaml(self.settings)

    @cached_property
    def recipe_sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def data_digest(self) -> str:
        return self.manifest.digest()


@contextmanager
def opened(job: Job, *, out: Path | None, runs: Path, resume: Resume | None) -> Iterator[Run]:
    """The run to train in, held by this process while inside: new, or with a checkpoint to go on from, or finished.

    Raises: UsageError where the folder holds something and is not to be gone on with; CheckpointError where it is to be
    and cannot; EnvironmentFault where another process holds it.
    """
    with ExitStack() as stack:
        folder = out
        if out is not None:
            stack.enter_context(locked(out))
        elif resume:
            folder = _newest(job, runs, stack)
        if resume and folder is not None and (folder / "run.json").exists():
            run = Run(folder)
            _check(run, job)
            if run.facts["finished"] or _begun(run):
                clean(folder)
                if not run.facts["finished"]:
                    log.info("continuing %s", folder)
                yield run
                return
        if resume == "must":
            found = "checkpoint to continue from" if out else "unfinished run of this recipe and these cases"
            fix = "name the run's folder with --out, or use --resume auto"
            raise CheckpointError(f"holds no {found}", fix=fix, file=(out or runs).name)
        if folder is None:
            folder = new_folder(runs, job.recipe)
            stack.enter_context(locked(folder))
        if resume:
            log.info("no unfinished run to resume: %s is a new run", folder)
        again = bool(resume) and _abandoned(folder)
        facts = {"recipe_sha256": job.recipe_sha256, "data_digest": job.data_digest, "started": time.time()}
        facts |= {"init_from": job.init_from} if job.init_from else {}
        run = create_run(folder, task=job.task, recipe=job.recipe, settings=job.text, overwrite=again, facts=facts)
        try:
            yield run
        except MedsegError:
            # What was refused before anything was learned leaves nothing, unless there was something before.
            if not again and not _begun(run) and not any(run.folder.glob("weights/*.safetensors")):
                shutil.rmtree(run.folder, ignore_errors=True)
            raise


def _newest(job: Job, runs: Path, stack: ExitStack) -> Path | None:
    """The newest unfinished run with a checkpoint, of the same recipe and data, that no other process holds."""
    candidates: list[tuple[float, Path]] = []
    for run in all_runs(runs):
        facts = run.facts
        asked = ("task", "recipe_sha256", "data_digest", "init_from")
        same = all(facts.get(name) == getattr(job, name) for name in asked)
        if same and not facts.get("finished") and _begun(run):
            candidates.append((run.moment("started") or 0.0, run.folder))
    for _, folder in sorted(candidates, reverse=True):
        try:
            stack.enter_context(locked(folder))
        except EnvironmentFault as error:
            log.info("not continuing %s", error.line)
            continue
        return folder
    return None


def _begun(run: Run) -> bool:
    return any(run.folder.glob(f"checkpoints/*/{POINTER}"))


def _abandoned(folder: Path) -> bool:
    """Whether a run was killed in the moment of its making: there is nothing in it to lose."""
    return (folder / "run.json").exists() and not any((folder / "weights").glob("*.safetensors"))


def _check(run: Run, job: Job) -> None:
    """Raises: CheckpointError that says in what the run differs from what is wanted."""
    facts, found = run.facts, ""
    if facts.get("task") != job.task:
        found = f"is a run for `{facts.get('task')}`, not `{job.task}`"
    elif not run.recipe_file.is_file() or sha256_of(run.recipe_file) != job.recipe_sha256:
        found = f"was started with another recipe ({_differences(run, job)})"
    elif facts.get("data_digest") != job.data_digest:
        found = "was started with another table of cases"
    elif facts.get("init_from") != job.init_from:
        found = f"was started with {'other weights' if facts.get('init_from') else 'untrained weights'} (--init-from)"
    if found:
        raise CheckpointError(
            found, fix="continue with what it was started with, or choose another --out", file=run.name
        )


def _differences(run: Run, job: Job) -> str:
    """`training.steps was 200 and is 100; …`."""
    try:
        then = flat(read_yaml(run.recipe_file))
    except ConfigError as error:
        return error.found
    now = flat(job.settings.model_dump(mode="json"))
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    said = [f"{name} was {then.get(name)} and is {now.get(name)}" for name in names[:SHOWN_DIFFERENCES]]
    more = len(names) - len(said)
    return "; ".join([*said, *([f"and {more} more"] if more else [])]) or "its recipe.yaml was edited"

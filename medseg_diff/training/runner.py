"""One phase of a training from its first step, or its checkpoint, to its last: measured, validated, kept, rolled back."""

import math
from collections.abc import Mapping

import torch

from medseg_diff.console import bar, log
from medseg_diff.data.datasets.batch import LOST_WORKER, Key, SeededDraws, batches
from medseg_diff.errors import Diverged, Preempted, counted
from medseg_diff.files import check_room, write_json
from medseg_diff.training.checkpoint import Checkpoint, Checkpoints, Environment, Identity, Mark
from medseg_diff.training.fit import Learners, Progress, fit
from medseg_diff.training.phase import Bench, Phase
from medseg_diff.training.signals import StopSignals
from medseg_diff.training.watcher import Watchers
from medseg_diff.training.weights import not_finite, save_tensors, save_weights

LOG_EVERY = 10
PATIENCE = 5  # updates in a row that may be left out
ROLLBACKS = 3  # from one checkpoint, each with half of what was left of the learning rate
COPIES = 14  # of the weights on the disk: three checkpoints of four while one takes another's place, the best, the last


class Unsteady(Exception):
    """The numbers stopped being finite with the update after `step`; caught here and nowhere else."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Course:
    """Where a phase is in its training, and what it is trained with."""

    def __init__(self, phase: Phase, bench: Bench, watchers: Watchers) -> None:
        self.phase, self.bench, self.watchers = phase, bench, watchers
        self.chief = bench.fabric.global_rank == 0
        identity = Identity(
            recipe_sha256=bench.recipe_sha256,
            data_digest=bench.data_digest,
            examples=len(phase.examples),
            world_size=bench.fabric.world_size,
        )
        environment = Environment(
            device=bench.fabric.device.type,
            precision=bench.precision,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
        )
        self.checkpoints = Checkpoints(bench.run.checkpoints(phase.name), identity, environment)
        self.mark, self.rollbacks, self.workers = Mark(), 0, phase.settings.workers
        self.put_off = False  # a validation, until an update holds again

    def run(self) -> None:
        """Train to the last step.

        Raises: Preempted with a checkpoint written, where the process was asked to stop; Diverged with the batch saved,
        where neither leaving updates out nor going back helps; CheckpointError; EnvironmentFault.
        """
        there, steps = self.checkpoints.mark(), self.phase.settings.steps
        if there and there.step >= steps:
            log.info("%s: done, all %s", self.phase.name, counted(steps, "step"))
            return
        phase, fabric = self.phase, self.bench.fabric
        self.learners = Learners(phase.objective, phase.settings, fabric, settings_of=phase.settings_of)
        self._begin()
        with StopSignals() as stop:
            while self.mark.step < steps:
                try:
                    self._go(stop)
                except Unsteady as odd:
                    self._slow_down(odd)
                except RuntimeError as error:  # torch raises it wherever this process happens to be
                    alone = self.bench.fabric.world_size == 1  # others would not hear of it
                    if not (alone and self.workers and LOST_WORKER.search(str(error))):
                        raise
                    self.workers = 0
                    self._go_back(f"{str(error).splitlines()[0].rstrip('.')}; continuing without loader workers")

    def _begin(self) -> None:
        """From the checkpoint, or with one of the untrained networks: a place to go back to, and a disk that is tried."""
        state = self.learners.state()
        if self.chief:
            weights = sum(value.nbytes for name, value in state.items() if ".model." in name)
            held = sum(path.stat().st_size for path in self.checkpoints.folder.glob("*") if path.is_file())
            check_room(self.bench.run.folder, COPIES * weights - held)  # of a training that goes on some are there
        found = self.checkpoints.load()
        if found is None:
            self.bench.fabric.barrier()  # nobody writes before everybody has looked
            self._save(0)
            if self.chief:
                self._draw(Progress(0, {}, self.learners.averages))  # MLflow's card opens on step 0
            return
        self._restore(found)
        log.info("%s: continuing from step %d of %d", self.phase.name, self.mark.step, self.phase.settings.steps)
        then, now = found.environment.model_dump(), self.checkpoints.environment.model_dump()
        changed = [f"{name} {then[name]}, now {now[name]}" for name in then if then[name] != now[name]]
        if changed:
            log.warning("the checkpoint was made with %s: the numbers will differ by rounding", "; ".join(changed))

    def _go(self, stop: StopSignals) -> None:
        """From the mark to the end, or to where the numbers stop being finite."""
        phase, fabric, start = self.phase, self.bench.fabric, self.mark.step
        stream = batches(phase.examples, self._draws(start), workers=self.workers)
        with bar(f"training {phase.name}", phase.settings.steps, done=start) as advance:
            for progress in fit(phase.objective, stream, phase.settings, fabric, learners=self.learners, start=start):
                numbers = self._look_at(progress)
                advance(note=f"loss {numbers['loss']:.4f}" if "loss" in numbers else "")
                if self._told_to_stop(stop, progress.step):
                    if self.mark.step < progress.step:
                        self._save(progress.step)
                    raise Preempted(
                        f"a checkpoint was written after step {progress.step} of {phase.settings.steps}",
                        fix=f"continue with {self.bench.again}",
                    )

    def _look_at(self, progress: Progress) -> dict[str, float]:
        """Read, validate, keep and log what is due after this step, and save where that is due. Raises: Unsteady."""
        settings, step = self.phase.settings, progress.step
        last = step == settings.steps
        validating = last or self.put_off or step % settings.validate_every == 0
        saving = validating or step % settings.save_every == 0
        if not (saving or step % LOG_EVERY == 0):
            return {}
        numbers, skipped = progress.measured(), int(progress.skipped)
        if skipped >= PATIENCE or (skipped and last):
            raise Unsteady(step - skipped)
        if saving and skipped:  # the weights may be what breaks the updates: nothing is kept of them
            self.put_off = validating
            return {}
        self.put_off = False
        if saving and not_finite(self.learners.state()):
            raise Unsteady(step - 1)
        if validating and self.chief:
            numbers |= self._validate(progress, numbers)
        numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
        if self.chief and (validating or step % LOG_EVERY == 0):
            named = {f"{self.phase.prefix}{name}": value for name, value in (numbers | self.learners.rates).items()}
            self.bench.run.log(step, named)
            self.watchers.tell(lambda watcher: watcher.metrics(step, named))
        if saving:
            self._save(step)
        return numbers

    def _validate(self, progress: Progress, numbers: Mapping[str, float]) -> dict[str, float]:
        """Measure the averaged networks, and keep their weights as the last and perhaps as the best."""
        phase, run, step = self.phase, self.bench.run, progress.step
        found = phase.validate(progress) if phase.validate else {}
        score = found[phase.better] if phase.better else float(step)
        best = phase.latest or self.mark.best is None or score >= self.mark.best
        for model, files in phase.weights.items():
            for which, name in files.items():
                if which == "last" or best:
                    save_weights(progress.averages[model], run.weights(name))
        if best:
            self.mark = self.mark.but(best=score)
            if phase.better:
                run.note(**{f"{phase.prefix}best_step": step, f"{phase.prefix}best_{phase.better}": score})
        self._draw(progress)
        said = {"loss": numbers["loss"]} | ({phase.better: score} if phase.better else {})
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4f}" for name, value in said.items()))
        return found

    def _draw(self, progress: Progress) -> None:
        """The denoising trajectory of this moment, where the phase draws any."""
        if self.phase.draw:
            picture = self.bench.run.trajectory(self.phase.name, progress.step)
            self.phase.draw(progress, picture.path)
            self.watchers.tell(lambda watcher: watcher.trajectory(picture))

    def _save(self, step: int) -> None:
        """A checkpoint of this moment, from which the counting of rollbacks starts anew."""
        size = self.bench.run.metrics_size() if self.chief else 0
        share = self.mark.share / 2**self.rollbacks
        self.mark, self.rollbacks = self.mark.but(step=step, metrics_bytes=size, share=share), 0
        if self.chief:
            self.checkpoints.save(self.mark, self.learners.state(), final=step == self.phase.settings.steps)
        self.bench.fabric.barrier()

    def _restore(self, found: Checkpoint) -> None:
        if found.damage:
            log.warning("%s; using the intact checkpoint before it, of step %d", found.damage, found.mark.step)
        self.mark = found.mark
        self.learners.restore(found.state, share=found.mark.share / 2**self.rollbacks)
        if self.chief:
            self.bench.run.cut_metrics(found.mark.metrics_bytes)

    def _slow_down(self, odd: Unsteady) -> None:
        """Back with half the learning rate. Raises: Diverged where that was tried often enough."""
        self.rollbacks += 1
        if self.rollbacks > ROLLBACKS:
            if self.chief:
                self._save_batch(odd.step)
            raise Diverged(
                f"{self.phase.name}: not finite at step {odd.step + 1}, with 1/{2**ROLLBACKS} of the learning rate as well; "
                "its batch is in diverged/",
                fix="look at that batch, lower training.learning_rate, or use training.precision=fp32",
            )
        share = self.mark.share / 2**self.rollbacks
        self._go_back(f"not finite at step {odd.step + 1}; continuing with {share:.3g} of the learning rate")

    def _go_back(self, reason: str) -> None:
        """To the last checkpoint."""
        found, self.put_off = self.checkpoints.load(), False
        assert found is not None, "a course begins by saving"
        self._restore(found)
        log.warning("%s: %s from step %d", self.phase.name, reason, self.mark.step)

    def _save_batch(self, step: int) -> None:
        """RUN/diverged/: the batch of the update after `step`, and which examples it is made of."""
        settings, folder = self.phase.settings, self.bench.run.folder / "diverged"
        draws = self._draws(step, updates=1)
        passes = [batch.parts for batch in batches(self.phase.examples, draws, workers=0)]
        tensors = {name: torch.cat([parts[name] for parts in passes]) for name in passes[0]}
        save_tensors(tensors, folder / "batch.safetensors")
        keys: list[Key] = [key for draw in draws for key in draw]
        said = {"phase": self.phase.name, "after_step": step, "seed": settings.seed}
        write_json(folder / "batch.json", said | {"examples": [{"epoch": k.epoch, "index": k.index} for k in keys]})

    def _draws(self, step: int, *, updates: int | None = None) -> SeededDraws:
        """The keys of every pass after `step` updates."""
        settings, fabric = self.phase.settings, self.bench.fabric
        stop = settings.steps if updates is None else step + updates
        return SeededDraws(
            len(self.phase.examples),
            settings.passes_batch,
            stop * settings.accumulate,
            seed=settings.seed,
            start=step * settings.accumulate,
            rank=fabric.global_rank,
            ranks=fabric.world_size,
        )

    def _told_to_stop(self, stop: StopSignals, step: int) -> bool:
        """Whether any process was asked to; several of them ask each other at times, because that costs time."""
        fabric = self.bench.fabric
        if fabric.world_size == 1:
            return stop.asked
        asked = torch.tensor(float(stop.asked), device=fabric.device)
        return step % LOG_EVERY == 0 and bool(fabric.all_reduce(asked, reduce_op="max"))

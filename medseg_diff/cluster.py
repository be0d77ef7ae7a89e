"""Work shared among processes of one machine or several, by Ray: each opens its model once; what is lost is done again."""

import io
import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from medseg_diff.cluster_worker import Worker, versions_here
from medseg_diff.console import log
from medseg_diff.errors import EnvironmentFault, MedsegError, OutOfMemory, counted, plain

Cluster = Literal["none", "ray"]
ADDRESS = "RAY_ADDRESS"
MOST_LOST = 3  # workers, on one piece of work, before it is given up
OBJECT_STORE_BYTES = 100 * 2**20  # what goes to and fro is small: images are read where they are needed


class Named(Protocol):
    """A piece of work."""

    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=Named)
Answer = TypeVar("Answer")
Work = Callable[[Item, int], Answer]  # of a piece of work, and how many workers were lost on it before
Outcome = tuple[Item, Answer | MedsegError]


@dataclass(frozen=True)
class Sharing:
    """How work is shared: `workers` processes (None: one for each GPU, else for each CPU), each with a GPU of its own where
    `gpus` are wanted and there."""

    workers: int | None = None
    gpus: bool = False


def shared(
    opened: Callable[[], Work[Item, Answer]], items: Sequence[Item], sharing: Sharing
) -> Generator[Outcome[Item, Answer], None, None]:
    """Each piece of work with its answer, or with the error of ours that it raised, in the order in which they are done.

    Every worker calls `opened` once, and what that returns for each of its pieces. It is a function of a module, perhaps
    with arguments: it is sent by name. A worker that is lost is replaced, and its piece given to another. The workers work
    in the folder that this process works in, under the same path. To close the generator ends them.
    Raises: EnvironmentFault where Ray cannot be used, or workers are lost while they open; what `opened` raises.
    """
    if items:
        with _started(sharing) as ray, _ended_by_term(), redirect_stdout(_ToLog()):
            size = _size_of(ray, sharing)
            gpus = ", one GPU each" if size.gpus else ""
            log.info("%s with %s each%s", counted(size.workers, "worker"), counted(size.threads, "thread"), gpus)
            yield from _Crew[Item, Answer](ray, opened, size).work_through(items)


def in_order(work: Callable[[Item], Answer], items: Sequence[Item], sharing: Sharing) -> Iterator[Answer]:
    """What `work`, a function of a module, says of each of the items, whose names differ, in their order.

    Raises: the first error there is; as `shared`.
    """
    answers, left = dict[str, Answer](), deque(items)
    with closing(shared(_Stateless(work), items, sharing)) as outcomes:
        for item, answer in outcomes:
            if isinstance(answer, MedsegError):
                raise answer
            answers[item.name] = answer
            while left and left[0].name in answers:
                yield answers.pop(left.popleft().name)


class _ToLog(io.TextIOBase):
    """Where Ray's own words on lost workers go, pages of them, which it prints: `-v` shows them."""

    def write(self, text: str) -> int:
        if text.strip():
            log.debug("%s", text.rstrip())
        return len(text)


@dataclass(frozen=True)
class _Stateless(Generic[Item, Answer]):
    """Work for which nothing need be opened."""

    work: Callable[[Item], Answer]

    def __call__(self) -> Work[Item, Answer]:
        return lambda item, lost: self.work(item)


class _Size(NamedTuple):
    """How many workers there are, and what each of them has."""

    workers: int
    threads: int
    gpus: int


def _size_of(ray: Any, sharing: Sharing) -> _Size:
    """Threads are those of OMP_NUM_THREADS, else each worker's share of the CPUs, as many as any of the machines has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(int(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU"))
    gpus = gpus if sharing.gpus else 0
    workers = sharing.workers or gpus or max(cpus, 1)
    share = min([cpus // workers, *(int(node["CPU"]) for node in nodes if node.get("CPU"))])
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return _Size(workers, int(threads) if threads.isdigit() and int(threads) else max(share, 1), min(gpus, 1))


@contextmanager
def _started(sharing: Sharing) -> Iterator[Any]:
    """Ray at the address in RAY_ADDRESS, else one of our own on this machine, which ends with the work.

    Raises: EnvironmentFault where it is not installed or does not answer.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    address = os.environ.get(ADDRESS)
    if address is None and "ray" not in sys.modules:  # it is for nobody else on this machine or its network
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", os.urandom(32).hex())
    try:
        import ray
    except ImportError:
        raise EnvironmentFault("ray is not installed", fix="pip install '.[ray]' in the repository") from None
    if ray.is_initialized():  # by the program that calls this function
        yield ray
        return
    own = {"num_cpus": max(_cpus(), sharing.workers or 1), "object_store_memory": OBJECT_STORE_BYTES}
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.CRITICAL,  # what matters is said here
            **(own if address is None else {}),
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        fix = f"check {ADDRESS} and that Ray and Python are the same there" if address else "use --cluster none"
        raise EnvironmentFault(f"Ray does not start: {plain(str(error), 200)}", fix=fix) from None
    try:
        yield ray
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)  # Ray had it


@contextmanager
def _ended_by_term() -> Iterator[None]:
    """SIGTERM ends this process with its usual exit code, but not before its workers."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Place(Generic[Item]):
    """A worker, and what it is at: `item`, on which some workers were `lost` before, or, where that is None, its opening."""

    worker: Any
    item: Item | None = None
    lost: int = 0


class _Crew(Generic[Item, Answer]):
    """Workers that are asked for the next piece of work whenever one has an answer."""

    def __init__(self, ray: Any, opened: Callable[[], Work[Item, Answer]], size: _Size) -> None:
        self.ray, self.opened, self.size = ray, opened, size
        self.busy: dict[Any, _Place[Item]] = {}  # by the promise of an answer
        self.kind = ray.remote(Worker).options(num_cpus=size.threads, num_gpus=size.gpus, max_restarts=0)

    def work_through(self, items: Sequence[Item]) -> Iterator[Outcome[Item, Answer]]:
        waiting, left, idle = deque((item, 0) for item in items), len(items), list[_Place[Item]]()
        for _ in range(min(self.size.workers, len(items))):
            self._begin()
        try:
            while left:
                while idle and waiting:
                    self._give(idle.pop(), *waiting.popleft())
                place, answer = self._next()
                if isinstance(answer, _Lost):
                    self._begin(place.lost if place.item is None else 0)
                    if place.item is None:
                        continue
                    if place.lost < MOST_LOST:
                        waiting.appendleft((place.item, place.lost))
                        continue
                    answer = _given_up(place.item)
                else:
                    idle.append(place)
                    if place.item is None:
                        continue
                left -= 1
                yield place.item, answer
        finally:
            for place in [*self.busy.values(), *idle]:
                with suppress(self.ray.exceptions.RayError):
                    self.ray.kill(place.worker)

    def _begin(self, lost: int = 0) -> None:
        """One more worker opens its model. Raises: EnvironmentFault where several were lost while they did."""
        if lost >= MOST_LOST:
            raise EnvironmentFault(f"{lost} workers were lost while opening the model", fix="use fewer --workers")
        worker = self.kind.remote(str(Path.cwd()), self.size.threads, log.getEffectiveLevel())
        self.busy[worker.open.remote(self.opened, versions_here())] = _Place(worker, lost=lost)

    def _give(self, place: _Place[Item], item: Item, lost: int) -> None:
        self.busy[place.worker.work.remote(item, lost)] = _Place(place.worker, item, lost)

    def _next(self) -> tuple[_Place[Item], Any]:
        """A worker that has an answer, or is lost. Raises: what opening a model raises, and any error that is not ours."""
        (promise,), _ = self.ray.wait(list(self.busy))
        place = self.busy.pop(promise)
        try:
            answer, said = self.ray.get(promise)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayError:
            place.lost += 1
            at = f"working on {place.item.name}" if place.item else "opening the model"
            log.warning("a worker was lost while %s: another takes over", at)
            return place, _Lost()
        for level, text in said:
            log.log(level, "%s", text)
        if place.item is None and isinstance(answer, MedsegError):
            raise answer
        return place, answer


class _Lost:
    """What there is in place of an answer where a worker was killed, or its machine is gone."""


def _given_up(item: Named) -> OutOfMemory:
    found = f"{MOST_LOST} workers were lost on it, as happens when memory runs out"
    return OutOfMemory(found, fix="use fewer --workers, or machines with more memory", case=item.name)

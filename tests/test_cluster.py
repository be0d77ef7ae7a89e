"""Work shared among processes: every piece is answered once, whatever becomes of the workers; errors stay what they are."""

import logging
import os
import signal
import sys
from functools import partial
from typing import NamedTuple

import pytest

from medseg_diff.cluster import Sharing, _size_of, in_order, shared
from medseg_diff.cluster_worker import Worker, versions_here
from medseg_diff.console import log
from medseg_diff.errors import EnvironmentFault, ImageError, OutOfMemory, UsageError


class Piece(NamedTuple):
    """Of work: a number, and the folder in which a worker says that it was there."""

    name: str
    number: int = 0
    folder: str = ""


def squared(piece):
    return piece.number**2


def refused(piece):
    raise ImageError("is odd", fix="drop it", case=piece.name)


def broken(piece):
    raise ZeroDivisionError(piece.name)


def opened(what):
    """A worker that does `what` with a piece, and tells of each."""

    def work(piece, lost):
        log.info("[%s] %d lost", piece.name, lost)
        return what(piece)

    return work


def opened_badly(kind):
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise UsageError("no such model", fix="name another")


def kills_the_first(piece):
    """The first worker at the piece is killed in the middle of it."""
    try:
        descriptor = os.open(f"{piece.folder}/{piece.name}", os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return os.getpid()
    os.close(descriptor)
    return os.kill(os.getpid(), signal.SIGKILL)


def kills(piece):
    if piece.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece.number


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, "medseg_diff")
    return lambda: [record.getMessage() for record in caplog.records]


TWO = Sharing(workers=2)
PIECES = [Piece(f"p{number}", number) for number in range(5)]


def test_every_piece_is_answered_and_what_was_said_is_said_here(ray_here, said):
    answers = {piece.number: answer for piece, answer in shared(partial(opened, squared), PIECES, TWO)}
    assert answers == {number: number**2 for number in range(5)}
    assert said()[0] == "2 workers with 1 thread each" or os.environ.get("OMP_NUM_THREADS") is None
    assert sorted(said()[1:]) == [f"[p{number}] 0 lost" for number in range(5)]


def test_answers_come_in_the_order_that_was_asked_for(ray_here):
    assert list(in_order(squared, PIECES, TWO)) == [0, 1, 4, 9, 16]
    assert list(in_order(squared, [], TWO)) == []


def test_an_error_of_ours_is_an_answer_and_in_order_it_is_raised(ray_here):
    (_, error), *_ = shared(partial(opened, refused), PIECES[:2], TWO)
    assert isinstance(error, ImageError) and error.line.endswith("is odd. Fix: drop it.")
    with pytest.raises(ImageError, match=r"\[p0\] is odd"):
        list(in_order(refused, PIECES[:1], TWO))


def test_any_other_error_is_raised_as_itself(ray_here):
    with pytest.raises(ZeroDivisionError, match="p0"):
        list(in_order(broken, PIECES[:1], TWO))


def test_a_lost_worker_is_replaced_and_its_piece_given_to_another(ray_here, said, tmp_path, capsys):
    pieces = [Piece(f"p{number}", number, str(tmp_path)) for number in range(2)]
    outcomes = list(shared(partial(opened, kills_the_first), pieces, TWO))
    assert sorted(piece.name for piece, _ in outcomes) == ["p0", "p1"]
    assert all(isinstance(answer, int) for _, answer in outcomes)
    assert "a worker was lost while working on p0: another takes over" in said() and "[p0] 1 lost" in said()
    assert capsys.readouterr().out == ""  # where a script reads the answer


def test_a_piece_on_which_worker_after_worker_is_lost_is_given_up(ray_here):
    answers = {piece.number: answer for piece, answer in shared(partial(opened, kills), PIECES, TWO)}
    assert {number: answers[number] for number in (0, 1, 2, 4)} == {0: 0, 1: 1, 2: 2, 4: 4}
    assert isinstance(answers[3], OutOfMemory)
    assert answers[3].line.startswith("[p3] 3 workers were lost on it")


@pytest.mark.parametrize(
    ("kind", "error", "match"),
    [("odd", UsageError, "no such model"), ("killed", EnvironmentFault, "3 workers were lost while opening")],
)
def test_a_model_that_cannot_be_opened_ends_the_work(ray_here, kind, error, match):
    with pytest.raises(error, match=match):
        list(shared(partial(opened_badly, kind), PIECES[:1], TWO))


def test_a_worker_elsewhere_must_see_the_folder_and_have_the_same_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = log.handlers[:], log.propagate, log.level
    try:
        worker = Worker(str(tmp_path / "nowhere"), 1, logging.INFO)
        (error, _), (other, _) = worker.open(int, versions_here()), worker.open(int, {"torch": "1.0"})
    finally:
        log.handlers[:], log.propagate = before[:2]
        log.setLevel(before[2])
    assert error.line == "nowhere: does not exist on the machine of a worker. Fix: use a disk that all machines share."
    assert "this process has" in other.line and other.exit_code == 5


class Nodes:
    """Ray with these machines."""

    def __init__(self, *resources):
        self.resources = resources

    def nodes(self):
        return [{"Alive": True, "Resources": each} for each in self.resources]


@pytest.mark.parametrize(
    ("nodes", "sharing", "size"),
    [
        ([{"CPU": 8.0}], Sharing(), (8, 1, 0)),
        ([{"CPU": 8.0}], Sharing(workers=2), (2, 4, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], Sharing(workers=2), (2, 4, 0)),
        ([{"CPU": 8.0, "GPU": 2.0}], Sharing(gpus=True), (2, 4, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}], Sharing(), (8, 1, 0)),
        ([{"CPU": 8.0}], Sharing(gpus=True), (8, 1, 0)),
        ([{"CPU": 2.0}], Sharing(workers=3), (3, 1, 0)),
        ([{"CPU": 0.0}, {"CPU": 4.0}], Sharing(workers=1), (1, 4, 0)),
    ],
)
def test_workers_share_the_cpus_or_have_a_gpu_each(monkeypatch, nodes, sharing, size):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert _size_of(Nodes(*nodes), sharing) == size
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert _size_of(Nodes(*nodes), sharing) == (size[0], 3, size[2])


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentFault) as caught:
        list(in_order(squared, PIECES, TWO))
    assert caught.value.line == "ray is not installed. Fix: pip install '.[ray]' in the repository."

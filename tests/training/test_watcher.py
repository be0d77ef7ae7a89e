"""A watcher hears everything in its order, and whatever it does, the training goes on."""

import logging

from medseg_diff.training.watcher import Watcher, Watchers


class Listening(Watcher):
    def __init__(self, fails_at=None):
        self.heard, self.fails_at = [], fails_at

    def metrics(self, step, numbers):
        self.heard.append((step, numbers))
        if step == self.fails_at:
            raise MemoryError("of its own")


def test_one_that_fails_is_named_once_and_the_others_hear_on(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    monkeypatch.setattr(
        logging.getLogger("medseg_diff"), "handlers", []
    )  # another test may have left one that is heard too
    caplog.set_level(logging.WARNING, "medseg_diff")  # whatever a command before this test has set
    bad, good = Listening(fails_at=2), Listening()
    watchers = Watchers([bad, good])
    for step in (1, 2, 3):
        watchers.tell(lambda watcher, step=step: watcher.metrics(step, {"loss": 0.1}))
    assert [step for step, _ in bad.heard] == [1, 2] and [step for step, _ in good.heard] == [1, 2, 3]
    assert caplog.messages == ["Listening failed (MemoryError); the training continues without it"]


def test_what_a_watcher_does_not_care_for_does_nothing(tmp_path):
    watchers = Watchers([Listening()])
    watchers.tell(lambda watcher: watcher.begin(None))
    watchers.tell(lambda watcher: watcher.trajectory(None))
    watchers.tell(lambda watcher: watcher.end(None, finished=True, weights=[]))

"""From Python: plain keywords become groups, and paths may be text."""

from pathlib import Path

import pytest

from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.keywords import gathered


@pytest.mark.parametrize("volumes", ["patient", Path("patient"), ["patient"], (Path("patient"),)])
def test_paths_may_be_text_and_a_single_scan_needs_no_list(volumes):
    groups = gathered(segment, {"volumes": volumes, "out": "results", "model": "runs/mine", "device": "cpu"})
    assert tuple(groups["source"].volumes) == ("patient",)
    assert groups["results"].out == Path("results") and groups["model"].model == Path("runs/mine")
    assert groups["compute"].device == "cpu" and groups["source"].data is None


def test_what_is_no_field_stays_as_it_is():
    assert gathered(segment, {"out": Path("results"), "odd": 3})["odd"] == 3


def test_text_is_read_as_on_the_command_line():
    groups = gathered(segment, {"out": "results", "channels": "flair,t1", "guarantee": "fnr=0.1", "shard": "1/2"})
    assert groups["source"].channels == ("flair", "t1") and groups["source"].shard == (1, 2)
    assert groups["ensemble"].guarantee == 0.1

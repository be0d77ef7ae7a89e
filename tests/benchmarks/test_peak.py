"""Peak memory in miniature: one contender in this process, and what is printed of all."""

import json
import subprocess
import sys

import pytest

from benchmarks import peak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_held_beyond_the_start_is_measured(capsys):
    peak.main(["--only", peak.OURS, "--shape", "32", "32", "32"])
    assert 1 < float(capsys.readouterr().out) < 4000
    before = peak.megabytes("VmRSS")
    held = bytearray(200_000_000)
    assert peak.megabytes("VmRSS") - before > 150 and peak.megabytes("VmHWM") >= before + 150
    del held


def test_every_contender_has_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    asked = []

    def run(words, **_):
        asked.append(words[words.index("--only") + 1])
        return subprocess.CompletedProcess(words, 0, stdout=f"said by a library\n{100.0 * len(asked)}\n")

    monkeypatch.setattr(peak.subprocess, "run", run)
    peak.main(["--out", str(tmp_path)])
    assert asked == list(peak.ALL)
    found = json.loads((tmp_path / "peak.json").read_text())["megabytes"]
    assert found == dict(zip(peak.ALL, (100.0, 200.0, 300.0, 400.0), strict=True))
    assert "3.00" in capsys.readouterr().out

"""The benchmark of unlike scans: shares of warnings, and real scans where they are given."""

from benchmarks import typicality
from benchmarks.typicality import left_out, measure, show, warned


def test_phantoms_are_judged_by_their_own_kind_and_by_another(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(typicality, "SHAPE", (40, 40, 32))
    monkeypatch.setattr(typicality, "LEARNED", (3,))
    result = measure(tmp_path, cases=5, far=2, draws=2)
    assert [row["learned"] for row in result["rows"]] == list(typicality.KINDS)
    assert all(0 <= row[share] <= 1 for row in result["rows"] for share in ("same", "other"))
    assert "other scanners" in show(result) and (tmp_path / "typicality.json").is_file()


def test_scores_and_shares() -> None:
    near = [{"t1 q50": 0.01 * number, "t1 noise": 0.0} for number in range(6)]
    assert warned(near, near) == 0 and warned(near, [{"t1 q50": 2.0, "t1 noise": 0.0}]) == 1
    assert len(left_out(near)) == 6 and max(left_out(near)) < 1

"""The sweep of an engine's settings: every one is tried, and the cheapest of the best is recommended."""

import csv

from medseg_diff.tasks.apply.anomaly import anomaly


def test_a_sweep_recommends_the_cheapest_of_the_best(untrained_anomaly, tmp_path, monkeypatch):
    monkeypatch.setattr("medseg_diff.tasks.apply.sweep.SLICES", 4)
    case = untrained_anomaly.table.parent / "phantom_0000"
    (folder,) = anomaly([str(case)], out=tmp_path, model=untrained_anomaly.folder, device="cpu", sweep=True)
    with (folder / "sweep.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    settings = {(row["depth"], row["steps"], row["scale"]) for row in rows}
    assert len(settings) == len(rows) == 27 and (20, 2, 5) in settings
    best = max(row["auroc"] for row in rows)
    cheapest = min(row["nfe"] for row in rows if row["auroc"] >= best - 0.005)
    words = dict(word.split("=") for word in (folder / "recommended.txt").read_text().split())
    (chosen,) = [row for row in rows if all(row[key.split(".")[1]] == float(words[key]) for key in words)]
    assert chosen["nfe"] == cheapest and chosen["auroc"] >= best - 0.005
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / case.name).exists()  # no maps

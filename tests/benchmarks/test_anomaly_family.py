"""The benchmark of the whole family: every engine is in it, on the networks that it can have, and rows are kept."""

import json

from benchmarks.anomaly_family import BASELINES_OF, FAMILY, _word, measure, show
from medseg_diff.recipes.lookup import load_recipe
from tests.methods.anomaly.test_engine import KINDS


def test_every_engine_has_a_row_and_shares_networks_only_with_one_that_learns_alike():
    engines = {}
    for name, member in FAMILY.items():
        recipe = load_recipe(member.config, task="anomaly", overrides=member.overrides if not member.shares else ())
        engines[name] = recipe.engine
        if member.shares:
            lender = load_recipe(FAMILY[member.shares].config, task="anomaly", overrides=member.overrides)
            assert lender.engine.kind == recipe.engine.kind and FAMILY[member.shares].shares is None
            own = FAMILY[member.shares]
            learned = load_recipe(own.config, task="anomaly").engine
            assert (lender.engine.learns_from, lender.engine.conditioned_on) == (
                learned.learns_from,
                learned.conditioned_on,
            )
            assert set(lender.engine.networks) <= set(learned.networks)
    assert {type(engine) for engine in engines.values()} == set(KINDS)
    assert "classifier" in engines[BASELINES_OF].networks


def test_a_row_that_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    for name in FAMILY:
        metric = {"value": 0.9, "low": 0.8, "high": 0.95}
        names = ("auroc", "average_precision", "dice_best", "dice_preset", "false_positives_ml", "lesion_left")
        row = {"name": name, "nfe": 7, "seconds_per_slice": None, "metrics": dict.fromkeys(names, metric)}
        path = tmp_path / "rows" / f"{_word(name)}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([row]))
    monkeypatch.setattr("benchmarks.anomaly_family.phantom", lambda *args, **options: tmp_path / "cases.csv")
    result = measure(tmp_path, device="cpu")
    assert [row["name"] for row in result["methods"]] == list(FAMILY)
    text = show(result)
    assert all(f"\n{name} " in text for name in FAMILY) and "0.900 [0.800, 0.950]" in text
    assert len(measure(tmp_path, device="cpu", only=["AutoDDPM"])["methods"]) == 1

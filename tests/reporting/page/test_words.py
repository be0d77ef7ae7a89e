"""What a page says of a case, in words and tables."""

from medseg_diff.reporting.page.words import sections_of

CHECKS = {"stays_normal": {"holds": False, "share": 0.25}, "p_healthy": {"rose": True, "before": 0.1, "after": 0.9}}
MAP = {
    "task": "anomaly",
    "threshold": {"value": 0.5, "how": "healthy"},
    "score": 0.7,
    "volume_ml": 3.0,
    "lesions": 1,
    "removed": 0,
}


def rows_of_checks(checks, **facts):
    sections = {each.title: each for each in sections_of(MAP | {"quality_checks": checks} | facts, [], {})}
    return sections["Quality checks"].rows


def test_a_check_has_its_verdict():
    assert rows_of_checks(CHECKS) == [
        ["stays normal", "not passed", "share 0.25"],
        ["p healthy", "passed", "before 0.1, after 0.9"],
    ]


def test_of_a_study_each_runs_checks_have_theirs():
    rows = rows_of_checks({"fold_1": CHECKS, "fold_2": {}}, models=[{"model": "fold_1"}, {"model": "fold_2"}])
    assert [row[:2] for row in rows] == [["fold_1: stays normal", "not passed"], ["fold_1: p healthy", "passed"]]

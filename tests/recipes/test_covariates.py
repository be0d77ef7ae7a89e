"""Covariates as numbers: ranges, who is drawn beside what was asked for, and what is refused."""

import numpy as np
import pytest

from medseg_diff.data.tables.case import Case
from medseg_diff.errors import ManifestError, UsageError
from medseg_diff.recipes.covariates import Covariates, number_of, read_covariates, values_of, write_covariates
from medseg_diff.run import Run

NAMES = ("age_years", "sex", "ventricle_volume_ml")


def people(count=400, seed=0):
    """Ventricles widen with age; sex has nothing to do with either."""
    draw = np.random.default_rng(seed)
    ages = draw.uniform(20, 80, count)
    return [
        Case(f"p{number}", f"p{number}", covariates={"age_years": age, "sex": sex, "ventricle_volume_ml": ml})
        for number, (age, sex, ml) in enumerate(
            zip(ages, draw.choice(["F", "M"], count), 10 + 0.4 * ages + draw.normal(0, 2, count), strict=True)
        )
    ]


KNOWN = Covariates.measured(NAMES, people())


def test_values_lie_between_zero_and_one_and_come_back():
    case = people()[3]
    scaled = KNOWN.scaled(values_of(case, NAMES))
    assert all(0 <= value <= 1 for value in scaled)
    assert KNOWN.named(scaled) == {
        "age_years": round(case.covariates["age_years"], 3),
        "sex": case.covariates["sex"],
        "ventricle_volume_ml": round(case.covariates["ventricle_volume_ml"], 3),
    }
    assert KNOWN.unscaled(scaled) == pytest.approx(values_of(case, NAMES))


def draws(asked, count=400):
    found = [KNOWN.drawn(asked, np.random.default_rng(seed)) for seed in range(count)]
    return np.array([KNOWN.unscaled(each) for each in found])


def test_what_is_not_asked_for_is_as_among_the_cases_trained_on():
    young, old = draws({"age_years": 25.0}), draws({"age_years": 75.0})
    assert np.allclose(young[:, 0], 25) and np.allclose(old[:, 0], 75)
    assert young[:, 2].mean() == pytest.approx(10 + 0.4 * 25, abs=0.5)
    assert old[:, 2].mean() == pytest.approx(10 + 0.4 * 75, abs=0.5)
    assert young[:, 2].std() == pytest.approx(2, abs=0.4)
    assert set(young[:, 1]) == {0.0, 1.0} and 0.35 < young[:, 1].mean() < 0.65


def test_with_nothing_asked_for_everybody_may_come():
    anybody = draws({})
    known = np.array([values_of(case, NAMES) for case in people()])
    assert np.corrcoef(anybody[:, 0], anybody[:, 2])[0, 1] == pytest.approx(
        np.corrcoef(known[:, 0], known[:, 2])[0, 1], abs=0.1
    )
    assert (anybody.min(axis=0) >= known.min(axis=0)).all() and (anybody.max(axis=0) <= known.max(axis=0)).all()


def test_the_same_generator_draws_the_same():
    first, second = (KNOWN.drawn({"sex": "M"}, np.random.default_rng(7)) for _ in range(2))
    assert first == second and first[1] == 1.0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"handedness": 1.0}, "not trained on handedness"),
        ({"age_years": 130.0}, "ask for 20"),
        ({"sex": "X"}, "ask for F or M"),
        ({"age_years": "old"}, "age_years old is outside"),
    ],
)
def test_what_the_model_does_not_know_is_refused(asked, said):
    with pytest.raises(UsageError, match=said):
        KNOWN.drawn(asked, np.random.default_rng(0))


def test_a_case_that_lacks_one_is_named():
    with pytest.raises(ManifestError) as error:
        values_of(Case("p0", "p0", covariates={"age_years": 3.0, "sex": "F"}), NAMES)
    assert error.value.case == "p0" and "has no ventricle_volume_ml" in error.value.found


def test_a_covariate_that_never_varies_is_refused():
    same = [Case(f"p{n}", f"p{n}", covariates={"age_years": 40.0}) for n in range(3)]
    with pytest.raises(ManifestError, match="40 in every training case"):
        Covariates.measured(("age_years",), same)


@pytest.mark.parametrize(
    ("word", "number"), [("F", 0), ("female", 0), ("M", 1), (" male ", 1), (1.0, 1), (0.0, 0), ("x", None), ("", None)]
)
def test_sex_is_a_number(word, number):
    assert number_of("sex", word) == number


def test_they_are_kept_with_the_run(tmp_path):
    assert read_covariates(Run(tmp_path)) is None
    write_covariates(Run(tmp_path), KNOWN)
    assert read_covariates(Run(tmp_path)) == KNOWN

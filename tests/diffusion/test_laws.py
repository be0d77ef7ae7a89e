"""The engine's laws against answers that can be computed; `medseg-diff selftest` prints the same list."""

import pytest

from medseg_diff.diffusion.laws import all_laws

LAWS = list(all_laws())


@pytest.mark.parametrize("law", LAWS, ids=[law.name for law in LAWS])
def test_law_holds(law):
    assert law.measure() <= law.bound

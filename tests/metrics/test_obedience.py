"""Whether scans are as they were asked for: agreement of what is known."""

import math

from medseg_diff.metrics.obedience import Line, obedience


def lines(count, *, of="drawn", guidance=1.0, by="regressor"):
    name = "real" if guidance is None else "g1_age"
    return [
        Line(f"{name}_{number}", of, guidance, "age", number, float(number), by, 2.0 * number + number % 2)
        for number in range(count)
    ]


def test_a_scan_that_could_not_be_measured_takes_the_others_with_it_no_more():
    drawn = lines(20)
    whole = obedience(drawn)[0]
    drawn[3] = drawn[3]._replace(measured=math.nan)
    (row,) = obedience(drawn)
    assert (whole["n"], row["n"]) == (20, 19) and row["r"] > 0.99 and row["r_low"] < row["r"] < row["r_high"]


def test_each_way_of_measuring_has_its_row_real_scans_first():
    rows = obedience([*lines(5, of="real", guidance=None), *lines(5), *lines(5, by="masks")])
    assert [(row["of"], row["guidance"], row["by"]) for row in rows] == [
        ("real", None, "regressor"),
        ("drawn", 1.0, "regressor"),
        ("drawn", 1.0, "masks"),
    ]

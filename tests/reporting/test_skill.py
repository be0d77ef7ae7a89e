"""The curve of a classifier's skill is drawn from its table, and another table is refused."""

import pytest

from medseg_diff.errors import UsageError
from medseg_diff.reporting.skill import draw_skill


def test_it_draws_and_the_same_table_gives_the_same_bytes(tmp_path):
    table = tmp_path / "classifier.csv"
    table.write_text("t,balanced_accuracy,auroc,cross_entropy\n1,0.9,0.95,0.3\n500,0.5,0.52,0.7\n")
    draw_skill(table, tmp_path / "a.png")
    draw_skill(table, tmp_path / "b.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5000 and content == (tmp_path / "b.png").read_bytes()
    table.write_text("t,balanced_accuracy,auroc,cross_entropy\n1,0.6,0.7,0.3\n500,0.5,0.52,0.7\n")
    draw_skill(table, tmp_path / "b.png")
    assert content != (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("text", ["step,name,value\n1,loss,2\n", "t,balanced_accuracy,auroc\n1,high,0.5\n"])
def test_another_table_is_refused(tmp_path, text):
    (tmp_path / "other.csv").write_text(text)
    with pytest.raises(UsageError, match="no table of a classifier's skill"):
        draw_skill(tmp_path / "other.csv", tmp_path / "a.png")

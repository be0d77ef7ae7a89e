"""Names and colours of labels, as 3D Slicer and ITK-SNAP write them themselves."""

import re

from medseg_diff.data.formats.label_tables import COLOURS, ITK_SNAP, SLICER, write_label_tables

LABELS = [(1, "necrotic core"), (2, "oedema"), (1004, "rim")]


def rows(path):
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def test_slicer_reads_number_name_and_colour_between_blanks(tmp_path):
    write_label_tables(tmp_path, LABELS)
    assert (tmp_path / SLICER).read_text().startswith("# Color table file\n")
    found = [line.split() for line in rows(tmp_path / SLICER)]
    assert [(int(row[0]), row[1]) for row in found[1:]] == [(1, "necrotic_core"), (2, "oedema"), (1004, "rim")]
    assert all(len(row) == 6 and all(0 <= int(value) <= 255 for value in row[2:]) for row in found)
    assert len({tuple(row[2:5]) for row in found}) == 4 and found[0] == ["0", "background", "0", "0", "0", "0"]


def test_itk_snap_reads_eight_columns_the_name_in_quotes(tmp_path):
    write_label_tables(tmp_path, LABELS)
    line = re.compile(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([01])\s+([01])\s+([01])\s+"([^"]+)"')
    found = [line.fullmatch(row).groups() for row in rows(tmp_path / ITK_SNAP)]
    assert [(int(row[0]), row[7]) for row in found] == [(0, "Clear Label"), *LABELS]
    assert [row[4:7] for row in found] == [("0", "0", "0")] + 3 * [("1", "1", "1")]


def test_colours_come_again_after_the_last(tmp_path):
    write_label_tables(tmp_path, [(number, f"n{number}") for number in range(1, len(COLOURS) + 2)])
    first, *_, last = [line.split()[2:] for line in rows(tmp_path / SLICER)[1:]]
    assert first == last

"""`summary.csv`: one row for each case of a folder of results, made anew from their case.json at the end of each call."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medseg_diff.data.results import FACTS, checks_by_run
from medseg_diff.errors import EnvironmentFault, MedsegError, UsageError
from medseg_diff.files import clean, read_facts, table_text, write_text
from medseg_diff.locking import in_turn

SUMMARY, LOCK = "summary.csv", ".summary.lock"
FIRST = ("case", "task", "model")  # a table that begins otherwise is not ours
REGION = ("volume_ml", "low_ml", "high_ml", "level", "lesion_probability", "agreement", "review_axis", "review_slices")
SEGMENT = ("promises_apply", "members_drawn", "members", "slices_screened", "slices_with_brain")
ANOMALY = ("marked_ml", "lesions", "score", "threshold", "p_healthy_before", "p_healthy_after")
ASKED = ("mask_of", "guidance", "factor", "draws", "steps", "seed")
LAST = ("typicality", "typicality_threshold", "warnings")

Row = dict[str, Any]


@contextmanager
def summarised(out: Path) -> Iterator[None]:
    """Work on cases of the folder `out` inside; its summary is written at the end, also where an error ends the work.

    Raises: UsageError, before anything is done, where there is another file of that name; EnvironmentFault.
    """
    _refuse_others(out / SUMMARY)
    try:
        yield
    except MedsegError:
        with suppress(EnvironmentFault):
            write_summary(out)
        raise
    write_summary(out)


def write_summary(out: Path) -> None:
    """All cases of the folder by name, the same bytes in whatever order and by however many processes they were done; no
    table where there is no case.

    Raises: EnvironmentFault where it cannot be written.
    """
    if not out.is_dir():
        return
    path = out / SUMMARY
    with in_turn(out / LOCK):  # the last of several processes to read is then the last to write
        clean(out, SUMMARY)
        rows = rows_of(folder for folder in out.iterdir() if not folder.name.startswith("."))
        columns = _columns(rows)
        text = table_text(columns, [[row.get(name) for name in columns] for row in rows])
        if not rows:
            path.unlink(missing_ok=True)
        elif not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)


def rows_of(folders: Iterable[Path]) -> list[Row]:
    """What case.json says of each of these cases, in short, by name; folders without one that makes sense are left out."""
    rows = list[Row]()
    for folder in sorted(folders):
        facts = {} if folder.is_symlink() else read_facts(folder / FACTS)
        with suppress(AttributeError, KeyError, TypeError):
            rows += [_row(folder.name, facts)] if facts.get("task") in SHORT else []
    return rows


def saved(rows: list[Row]) -> list[str]:
    """What adaptive ensembles and screening left out of all cases, in words; nothing where neither was wanted."""
    lines = []
    adaptive = [row for row in rows if "members_drawn" in row]
    if asked := sum(row["members"] for row in adaptive):
        drawn = sum(row["members_drawn"] for row in adaptive)
        lines.append(f"drew {drawn} of {asked} members: {1 - drawn / asked:.0%} saved")
    screened = [row for row in rows if "slices_screened" in row]
    if slices := sum(row["slices_with_brain"] for row in screened):
        left_out = sum(row["slices_screened"] for row in screened)
        lines.append(f"skipped {left_out} of {slices} slices after one look: {left_out / slices:.0%} saved")
    return lines


def _row(name: str, facts: Mapping[str, Any]) -> Row:
    typicality = _object(facts, "typicality")
    row: Row = {"case": name, "task": facts["task"], "model": facts.get("model")}
    row |= SHORT[facts["task"]](facts)
    row |= {"typicality": typicality.get("score"), "typicality_threshold": typicality.get("threshold")}
    return row | {"warnings": len(facts.get("warnings") or ())}


def _of_segmentation(facts: Mapping[str, Any]) -> Row:
    row: Row = {}
    for region in _object(facts, "regions"):
        volume = _object(facts, "volume_ml", region)
        review = _object(facts, "slices_to_review").get(region) or []
        values = (
            volume.get("mask"),
            *(volume.get(key) for key in ("low", "high", "level")),
            _object(facts, "lesion_presence", region).get("probability"),
            _object(facts, "agreement").get(region),
            next((each["axis"] for each in review), None),
            " ".join(str(each["slice"]) for each in review) or None,
        )
        row |= {f"{region}_{key}": value for key, value in zip(REGION, values, strict=True)}
    row |= {"promises_apply": facts.get("promises_apply")}
    if facts.get("tolerance") is not None:
        row |= {"members_drawn": facts["members_drawn"], "members": facts["members"]}
    if slices := _object(facts, "slices"):
        row |= {"slices_screened": slices["screened"], "slices_with_brain": slices["with_brain"]}
    return row


def _of_anomalies(facts: Mapping[str, Any]) -> Row:
    p_healthy = [_object(checks, "p_healthy") for checks in checks_by_run(facts).values()]
    values = (
        facts.get("volume_ml"),
        facts.get("lesions"),
        facts.get("score"),
        _object(facts, "threshold").get("value"),
        _mean([each.get("before") for each in p_healthy]),
        _mean([each.get("after") for each in p_healthy]),
    )
    return dict(zip(ANOMALY, values, strict=True))


def _of_drawn(facts: Mapping[str, Any]) -> Row:
    """What was asked for of a scan that was drawn."""
    known = {name: facts[name] for name in ASKED if name in facts}
    return dict(_object(facts, "covariates")) | known


SHORT = {"segment": _of_segmentation, "anomaly": _of_anomalies, "synthesise": _of_drawn, "enhance": _of_drawn}


def _mean(values: Iterable[float | None]) -> float | None:
    """Over the runs that measured it; None where none did."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _object(facts: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """What lies below these keys, empty where a run measured nothing of the kind."""
    for key in keys:
        facts = facts.get(key) or {}
    return facts


def _columns(rows: list[Row]) -> list[str]:
    """Of all rows; those of regions in the order of their cases, outermost first."""
    there = dict.fromkeys(name for row in rows for name in row)
    fixed = (*FIRST, *SEGMENT, *ANOMALY, *LAST)
    regions = [name for name in there if name not in fixed]
    return [name for name in (*FIRST, *regions, *SEGMENT, *ANOMALY, *LAST) if name in there]


def _refuse_others(path: Path) -> None:
    """Raises: UsageError where a person, or a case of that name, has it."""
    if not path.exists() and not path.is_symlink():
        return
    with suppress(OSError, ValueError):
        if path.is_file() and not path.is_symlink():
            with path.open(encoding="utf-8", newline="") as file:
                if file.readline().startswith(",".join(FIRST)):
                    return
    found = "is not the table of results that this tool writes there"
    raise UsageError(found, fix="move it elsewhere, or use another --out", file=path.name)

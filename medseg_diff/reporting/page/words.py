"""What case.json says of one case, in words and tables that a person reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medseg_diff.data.results import checks_by_run
from medseg_diff.errors import counted

Facts = Mapping[str, Any]
Rows = Sequence[Sequence[Any]]

SHORT = 12  # letters of a checksum that tell files apart
NONE = "–"
LESION_WORDS = {
    "component": "lesion",
    "volume_ml": "volume (ml)",
    "x_mm": "R–L (mm, L < 0)",
    "y_mm": "P–A (mm, P < 0)",
    "z_mm": "I–S (mm, I < 0)",
    "mean": "mean",
    "peak": "peak",
}
SPELLING = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95",
    "ged2": "GED²",
    "ece": "ECE",
    "brier": "Brier",
    "aurc": "AURC",
    "auroc": "AUROC",
    "f1": "F1",
    "mm": "(mm)",
    "ml": "(ml)",
    "years": "(years)",
    "1mm": "at 1 mm",
    "band": "in doubt",
}
# Of a quality check, the values that say how it came out, and the word for each way.
VERDICTS = {
    "holds": ("passed", "not passed"),
    "within": ("passed", "not passed"),
    "rose": ("passed", "not passed"),
}


@dataclass(frozen=True)
class Section:
    """A part of a page: a sentence, facts by name, a table; each where there is one."""

    title: str
    words: str = ""
    facts: Sequence[tuple[str, str]] = ()
    columns: Sequence[str] = ()
    rows: Rows = field(default_factory=list)


def number(value: Any, unit: str = "", digits: int = 3) -> str:
    """A number to so many digits, – for nothing."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value}{unit and ' ' + unit}"
    if isinstance(value, float):
        text = f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
        return f"{text}{unit and ' ' + unit}"
    return str(value)


def spoken(name: str) -> str:
    """A name of the program's in the field's spelling: hd95_mm is HD95 (mm)."""
    return " ".join(SPELLING.get(word, word) for word in name.split("_"))


def lead(facts: Facts) -> str:
    """The result in a sentence."""
    if facts["task"] == "anomaly":
        count, threshold = facts["lesions"], facts["threshold"]["value"]
        if threshold is None:
            return "Anomaly map without a threshold: nothing is marked."
        if not count:
            return f"Nothing is marked above the threshold of {threshold:.3g}."
        return (
            f"{counted(count, 'region')} marked, {facts['volume_ml']:.1f} ml in all, above a score of {threshold:.3g}."
        )
    return " ".join(_volume(region, volume) for region, volume in facts["volume_ml"].items())


def _volume(region: str, volume: Facts) -> str:
    said = f"{spoken(region).capitalize()} {volume['mask']:.1f} ml"
    if volume["level"]:
        on = f"calibrated on {counted(volume['calibrated_on'], 'patient')}"
        return f"{said}, {volume['level']:.0%} interval {volume['low']:.1f} to {volume['high']:.1f} ml, {on}."
    members = volume["members"]
    between = f"the members' volumes run from {members['low']:.1f} to {members['high']:.1f} ml"
    return f"{said}; no calibrated interval, {between}."


def sections_of(facts: Facts, lesions: Rows, scores: Mapping[str, str]) -> list[Section]:
    """The parts of a case's page. `lesions` are rows of its components with their heading first, `scores` the numbers of its
    comparison with a reference, empty where there was none."""
    found = list(_of_anomalies(facts)) if facts["task"] == "anomaly" else list(_of_segmentation(facts))
    if len(lesions) > 1:
        heading = [LESION_WORDS.get(name, spoken(name)) for name in lesions[0]]
        found.insert(
            1,
            Section("Lesions", "Positions in the scanner's RAS millimetres, largest first.", (), heading, lesions[1:]),
        )
    if scores:
        found.append(Section("Against the reference", facts=[(spoken(name), value) for name, value in scores.items()]))
    return found


def _of_segmentation(facts: Facts) -> Iterator[Section]:
    columns = ("region", "mask (ml)", "interval", "from (ml)", "to (ml)", "members from", "members to", "agreement")
    rows = []
    for region, volume in facts["volume_ml"].items():
        members, level = volume["members"], volume["level"]
        kind = f"{level:.0%}, {counted(volume['calibrated_on'], 'patient')}" if level else "not calibrated"
        values = [volume["mask"], kind, volume["low"], volume["high"], members["low"], members["high"]]
        rows.append([spoken(region), *(number(value) for value in values), number(facts["agreement"].get(region))])
    words = (
        "A calibrated interval holds the true volume in that share of patients like those it was calibrated on; the "
        "members' range alone guarantees nothing. Agreement: mean Dice between members."
    )
    yield Section("Volumes", words, (), columns, rows)
    yield Section("Is the scan like the training scans?", *_typicality(facts))
    review = [
        [spoken(region), f"{each['slice'] + 1}", "xyz"[each["axis"]], number(each["expected_error_ml"])]
        for region, slices in facts["slices_to_review"].items()
        for each in slices
    ]
    if review:
        said = "Where the ensemble expects most errors, by its own probability."
        yield Section("Slices to review", said, (), ("region", "slice", "axis", "expected error (ml)"), review)


def _typicality(facts: Facts) -> tuple[str, Sequence[tuple[str, str]]]:
    found = facts.get("typicality") or {}
    score, threshold = found.get("score"), found.get("threshold")
    if score is None or not threshold:
        return "The model keeps no record of its training scans, so this is unknown.", ()
    verdict = "unlike them: read with care" if score > threshold else "like them"
    striking = ", ".join(map(str, found.get("striking") or ())) or NONE
    return f"This scan is {verdict}.", [("score", number(score)), ("limit", number(threshold)), ("striking", striking)]


def _of_anomalies(facts: Facts) -> Iterator[Section]:
    threshold = facts["threshold"]
    yield Section(
        "Threshold",
        "",
        [
            ("score marked from", number(threshold["value"])),
            ("how it was set", threshold["how"]),
            ("score of the scan", number(facts["score"])),
            ("marked", f"{facts['volume_ml']:.1f} ml in {counted(facts['lesions'], 'region')}"),
            ("left out as too small", number(facts["removed"])),
        ],
    )
    rows = []
    for run, checks in checks_by_run(facts).items():
        for name, values in checks.items():
            shown = ", ".join(f"{spoken(key)} {number(value)}" for key, value in values.items() if key not in VERDICTS)
            rows.append([f"{run}: {spoken(name)}" if run else spoken(name), _verdict(values), shown])
    yield Section("Quality checks", "", (), ("check", "verdict", "measured"), rows)
    yield Section("Is the scan like the training scans?", *_typicality(facts))


def _verdict(values: Facts) -> str:
    found = [VERDICTS[key][0 if value else 1] for key, value in values.items() if key in VERDICTS and value is not None]
    return found[0] if found else NONE


def provenance_of(facts: Facts) -> list[tuple[str, str]]:
    """Which model made it, and how."""
    sampled = ("seed", "steps", "members", "noise", "fusion", "strength", "guidance", "limit", "draws")
    said = [
        ("task", facts["task"]),
        ("recipe", facts["recipe"]),
        ("model", f"{facts['model']} ({str(facts['sha256'])[:SHORT]})"),
        ("solver", (facts.get("solver") or {}).get("kind")),
        ("engine", (facts.get("engine") or {}).get("kind")),
        *((spoken(name), facts.get(name)) for name in (*sampled, "network_passes")),
        ("enhanced by", (facts.get("enhanced_by") or {}).get("model")),
        ("network evaluations", _together(facts.get("network_evaluations"))),
        ("precision", facts["precision"]),
        ("device", f"{facts['device']}, {counted(facts['threads'], 'thread')}"),
        ("versions", _together(facts["versions"])),
        ("seconds", _together(facts["seconds"])),
        ("channels", ", ".join(facts.get("channels", ()))),
    ]
    return [(name, number(value)) for name, value in said if value not in (None, "", [])]


def checksums_of(facts: Facts) -> list[tuple[str, str]]:
    """(file, SHA-256) of what was read and written."""
    digests = {
        name: each.get("file_sha256") if isinstance(each, Mapping) else each
        for name, each in facts.get("inputs", {}).items()
    }
    read = [(f"{name} (read)", digest) for name, digest in digests.items() if digest]
    return [*read, *facts["outputs"].items()]


def _together(values: Facts | float | None) -> str | None:
    """Values by name in a line; one that stands alone as it is."""
    if not isinstance(values, Mapping):
        return None if values is None else number(values)
    return ", ".join(f"{spoken(name)} {number(value)}" for name, value in values.items()) if values else None

"""`report`: pages from what lies in a folder of results, one for each case and one for all; of runs see `report_runs`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg_diff.console import bar, log
from medseg_diff.data.results import DRAWN, FACTS, CaseResult, facts_of_result, holds_result, read_result
from medseg_diff.data.tables.case import Case
from medseg_diff.data.tables.inputs import find_case
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import ManifestError, UsageError
from medseg_diff.files import check_writable, read_facts
from medseg_diff.methods.components import LESION_COLUMNS, find_lesions
from medseg_diff.recipes.lookup import find_recipe, recipe_names
from medseg_diff.reporting.page.case import read_lesions, write_case_page
from medseg_diff.reporting.page.cohort import Evaluated, worst_first, write_cohort_page
from medseg_diff.reporting.page.drawn import write_scan_page, write_scans_page
from medseg_diff.settings import read_yaml
from medseg_diff.tasks.report_runs import holds_runs, report_runs
from medseg_diff.tracking.attaching import attach_page

Facts = Mapping[str, Any]


def report(
    folder: Path | str,
    *,
    data: Path | str | None = None,
    volumes: Sequence[str] = (),
    channels: Sequence[str] = (),
    data_root: Path | None = None,
    most: int | None = None,
    runs: Path = Path("runs"),
    mlflow: bool = True,
) -> Path:
    """Write report.html into every case's folder below `folder`, which a verb wrote, and one for all of them into `folder`;
    of the folder of a single case that one alone. Returns the page to open first.

    The scans under masks and maps are those of the table `data`, or of one case by its files `volumes` (numbered ones as
    `channels`); without either the pages show masks, maps and numbers. What `evaluate` wrote there is shown too. With `most`
    only so many cases have pages of their own, the worst first. The page of all is shown, unless `mlflow` is off, among the
    artifacts of the run below `runs` that made the results.

    Of a run or a study, or a folder of them, the pages are of the trainings: results, curves, pictures, settings, versions.
    Raises: UsageError where there is neither, ManifestError, ImageError where a file is damaged, EnvironmentFault.
    """
    folder = Path(folder) if Path(folder).name else Path(folder).absolute()  # `.` has no name
    single = (folder / FACTS).is_file()
    facts = _facts(folder.parent, [folder.name]) if single else _facts(folder, _names(folder))
    if not facts and holds_runs(folder):
        if data is not None or volumes:
            raise UsageError("holds trainings, whose pages show no scans", fix="leave --data and --volume out")
        return report_runs(folder, runs=runs, most=most, mlflow=mlflow)
    if not facts:
        raise UsageError(
            "holds neither finished results of `segment`, `anomaly`, `synthesise` or `enhance`, nor a run",
            fix="name the folder that was their --out, or that of one case, or of runs",
            file=folder.name,
        )
    tasks = sorted({str(each["task"]) for each in facts.values()})
    if len(tasks) > 1:
        found = f"holds results of {' and '.join(f'`{task}`' for task in tasks)}"
        raise UsageError(found, fix="keep them in separate folders", file=folder.name)
    check_writable(folder)
    if tasks[0] in DRAWN:
        if data is not None or volumes:
            raise UsageError(f"the results of `{tasks[0]}` are scans themselves", fix="leave --data and --volume out")
        page = _of_scans(folder, facts, single=single, most=most)
        if not single:
            attach_page(folder, runs=runs, mlflow=mlflow)
        return page
    cases = _cases(facts, data, volumes, channels, data_root)
    results = folder.parent if single else folder
    evaluated, papers = Evaluated.read(results), _papers(next(iter(facts.values())))
    names = worst_first(next(iter(facts.values()))["task"], facts, evaluated)[0][:most]
    with bar("pages", len(names)) as step:
        for name in names:
            result = read_result(results / name, name)
            page = write_case_page(
                results / name,
                cases.get(name),
                papers=papers,
                lesions=_lesions(result),
                scores=evaluated.scores(name),
            )
            step()
    if not single:
        page = write_cohort_page(folder, facts, cases, papers=papers, evaluated=evaluated)
        attach_page(folder, runs=runs, mlflow=mlflow)
    if not cases:
        log.info("the pages show no scans: add --data TABLE, or --volume for one case")
    return page


def _of_scans(folder: Path, facts: Mapping[str, Facts], *, single: bool, most: int | None) -> Path:
    """The pages of what was drawn, of at most so many scans; returns the one to open first."""
    results, papers = folder.parent if single else folder, _papers(next(iter(facts.values())))
    names = list(facts)[:most]
    with bar("pages", len(names)) as step:
        for name in names:
            page = write_scan_page(results / name, facts[name], papers=papers)
            step()
    return page if single else write_scans_page(folder, facts, papers=papers)


def _names(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{FACTS}"))


def _facts(folder: Path, names: Sequence[str]) -> dict[str, Facts]:
    """case.json of each finished case. Raises: UsageError where one was written by another version."""
    found: dict[str, Facts] = {}
    for name in names:
        facts = read_facts(folder / name / FACTS)
        task = str(facts.get("task", "segment"))
        if holds_result(folder / name, task):
            found[name] = facts if task in DRAWN else facts_of_result(folder / name, name)
    return found


def _cases(
    facts: Mapping[str, Facts],
    data: Path | str | None,
    volumes: Sequence[str],
    channels: Sequence[str],
    data_root: Path | None,
) -> dict[str, Case]:
    """The scans of these results by case. Raises: UsageError, ManifestError."""
    if data is not None and volumes:
        raise UsageError("one of --volume and --data is enough", fix="leave one out")
    if volumes:
        if len(facts) > 1:
            found = f"--volume is one scan, but there are {len(facts)} cases"
            raise UsageError(found, fix="name their table with --data, or the folder of one case")
        name, known = next(iter(facts.items()))
        case, sentence = find_case(
            volumes, known["channels"], order=channels, fill_missing=bool(known.get("missing_channels"))
        )
        log.info("%s", sentence)
        return {name: case}
    if data is None:
        return {}
    manifest = read_manifest(Path(data), data_root=data_root)
    cases = {case.name: case for case in manifest.cases if case.name in facts}
    if not cases:
        raise ManifestError(
            f"names none of the {len(facts)} cases of the results",
            fix="use the table that they were made from",
            file=manifest.file,
        )
    return cases


def _lesions(result: CaseResult) -> Sequence[Sequence[Any]]:
    """The components of a mask with their place and probability, or those that `anomaly` wrote; their heading first."""
    if result.task == "anomaly":
        return read_lesions(result.folder)
    region = next(iter(result.regions))
    probability = result.map("probability", region)
    if probability is None:
        return []
    mask = result.mask(region)
    found = find_lesions(probability, mask, threshold=-1.0, smallest_ml=0.0, affine=result.main.affine)
    return [LESION_COLUMNS, *found.rows]


def _papers(facts: Facts) -> str:
    """What the recipe names as its papers, where it is one of ours."""
    task = facts["task"]
    names = {name.replace("/", "-"): name for name in recipe_names(task)}
    name = names.get(facts["recipe"])
    return str(read_yaml(find_recipe(name, task=task)).get("paper", "")) if name else ""

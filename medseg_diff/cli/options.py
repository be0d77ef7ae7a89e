"""Options that several verbs share, each said once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Data = Annotated[Path, typer.Option(help="Table of cases (CSV).")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder that paths in the table are relative to [the table's].")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Resume = Annotated[
    Literal["auto", "must"] | None,
    typer.Option(
        help="Go on with the unfinished run in --out [the newest of this recipe and data]; auto: or begin one."
    ),
]
Overwrite = Annotated[bool, typer.Option(help="Redo what is there.")]
KeepGoing = Annotated[bool, typer.Option(help="Go on past a bad case; OUT/failures.csv lists it.")]
Pseudonymise = Annotated[
    bool, typer.Option("--pseudonymise", help="Results carry pseudonyms in place of the cases' names.")
]
PseudonymKey = Annotated[
    Path | None, typer.Option(help="File of the secret that makes the pseudonyms [RUNS/pseudonym.key].")
]

# of training
Words = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="key=value laid over the recipe.")]
Config = Annotated[str, typer.Option(help="Recipe by name (see `info`) or path.")]
RunFolder = Annotated[Path | None, typer.Option(help="Run folder [runs/TIME-RECIPE].")]
Runs = Annotated[Path, typer.Option(help="Folder of runs, cache and MLflow store.")]
Mirrored = Annotated[bool, typer.Option(help="Mirror the run in MLflow.")]

# of applying a model
Results = Annotated[Path, typer.Option(help="Where results go, a folder for each case.")]
Volume = Annotated[list[str] | None, typer.Option(help="Case folder, file of a case, or channel=file (repeat).")]
Table = Annotated[Path | None, typer.Option(help="Table of cases (CSV).")]
Split = Annotated[str | None, typer.Option(help="Only train, val or test.")]
Model = Annotated[Path | None, typer.Option(help="Run folder [the newest below --runs].")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32 or bf16 [the recipe's].")]
ResampleTo = Annotated[str | None, typer.Option(help="Bring the other channels onto this one's grid.")]
Shard = Annotated[str, typer.Option(help="K/N: every N-th case, starting with the K-th.")]
RunsOfModels = Annotated[Path, typer.Option(help="Where to look for the newest run.")]

"""From run folders to their networks on a device: which runs `--model` means, their recipe and weights, all verified."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from medseg_diff import __version__
from medseg_diff.device import find_device, find_precision
from medseg_diff.errors import CheckpointError
from medseg_diff.recipes.base import Recipe
from medseg_diff.recipes.typicality import Typicality, read_typicality
from medseg_diff.run import Run
from medseg_diff.runs import find_run, locate
from medseg_diff.settings import of_a_run, parse_settings, read_yaml
from medseg_diff.studies import FoldStudy, FoundModel, find_folds
from medseg_diff.tracking.registry import SCHEME, fetch
from medseg_diff.training.fit import channels_last
from medseg_diff.training.weights import load_weights

Kind = TypeVar("Kind", bound=Recipe)
Network = TypeVar("Network", bound=nn.Module)


def find_model(model: Path | str | None, *, task: str, runs: Path) -> Run:
    """The run that was named, or the newest finished one of this task below `runs`; a registered one is brought first.

    Raises: CheckpointError where that is no run of this task or is damaged, UsageError where there is none,
    EnvironmentFault where MLflow does not answer.
    """
    return find_run(_brought(model, runs), task=task, runs=runs)


def find_models(model: Path | str | None, *, task: str, runs: Path) -> FoundModel:
    """The same, or the runs of all folds where it is a study. Raises: what `find_model` raises."""
    return find_folds(_brought(model, runs), task=task, runs=runs)


def task_of_model(model: Path | str, *, runs: Path) -> str:
    """What a run or a study is for. Raises: CheckpointError where it is neither; as `find_model`."""
    path = _brought(model, runs) or Path(model)
    studies = (FoldStudy(each) for each in (path, runs / path))
    study = next((each for each in studies if each.there), None)
    return str((study or locate(path, runs)).facts.get("task"))


def _brought(model: Path | str | None, runs: Path) -> Path | None:
    """A model as a path, a registered one after it was fetched."""
    if model is None:
        return None
    return fetch(str(model), runs).folder if str(model).startswith(SCHEME) else Path(model)


@dataclass(frozen=True)
class Trained(Generic[Kind]):
    """A run ready for use: `networks` by the names of their weights; `digests` of all its files, which were verified;
    `facts` is what every case.json says of it; `typicality` tells scans that are unlike those trained on."""

    recipe: Kind
    networks: dict[str, nn.Module]
    digests: dict[Path, str]
    device: torch.device
    precision: str
    facts: dict[str, Any]
    typicality: Typicality | None


def recipe_of(run: Run, kind: type[Kind]) -> Kind:
    """The recipe that a run was trained by. Raises: CheckpointError where its file is not what was written."""
    with of_a_run():
        return parse_settings(kind, read_yaml(run.recipe_file), source=f"{run.name}/{run.recipe_file.name}")


def open_run(run: Run, kind: type[Kind], *, device: str = "auto", precision: str | None = None) -> Trained[Kind]:
    """Recipe and networks of a sealed run, in evaluation mode on a device.

    Raises: CheckpointError where a file of the run is missing, damaged or does not fit the recipe; UsageError,
    EnvironmentFault for the device.
    """
    digests = run.verified(run.recipe_file)
    recipe, chosen = recipe_of(run, kind), find_device(device)
    parts = recipe.parts()
    if unlisted := [path for path in map(run.weights, parts) if path not in digests]:
        run.verified(*unlisted)  # says what is wrong with them
    networks = {name: load_network(build(), run.weights(name), chosen) for name, build in parts.items()}
    exact = find_precision(precision or recipe.training.precision, chosen)
    first, *others = parts
    facts = {
        "model": run.name,
        "sha256": digests[run.weights(first)],
        **{f"{name}_sha256": digests[run.weights(name)] for name in others},
        "recipe": run.facts["recipe"],
        "recipe_sha256": digests[run.recipe_file],
        "precision": exact,
        "device": chosen.type,
        "threads": torch.get_num_threads(),
        "versions": {"medseg_diff": __version__, "torch": torch.__version__},
    }
    return Trained(recipe, networks, digests, chosen, exact, facts, read_typicality(run))


def open_other(run: Run, first: Trained[Kind]) -> Trained[Kind]:
    """Another run of the recipe of the `first`, verified: its `networks` are those of the first, which put on its weights
    when it is its turn, so that the memory is that of one run.

    Raises: CheckpointError where a file of the run is missing or damaged, or it is of another recipe.
    """
    parts = tuple(first.networks)
    digests = run.verified(run.recipe_file, *map(run.weights, parts))
    if digests[run.recipe_file] != first.facts["recipe_sha256"]:
        raise CheckpointError(
            f"was trained with a different recipe than {first.facts['model']}",
            fix="train its study again",
            file=run.name,
        )
    main, *others = (digests[run.weights(name)] for name in parts)
    own = {"model": run.name, "sha256": main}
    own |= {f"{name}_sha256": digest for name, digest in zip(parts[1:], others, strict=True)}
    return replace(first, digests=digests, facts=first.facts | own, typicality=read_typicality(run))


def facts_of_study(name: str, runs: Sequence[Trained[Kind]]) -> dict[str, Any]:
    """What case.json says of several runs that are used as one model: each run's name and digests, and as the model's own
    digests those of the joined ones."""
    keys = ["sha256", *(f"{part}_sha256" for part in list(runs[0].networks)[1:])]
    joined = {key: hashlib.sha256("".join(run.facts[key] for run in runs).encode()).hexdigest() for key in keys}
    return {"model": name, **joined, "models": [{key: run.facts[key] for key in ("model", *keys)} for run in runs]}


def load_network(network: Network, weights: Path, device: torch.device) -> Network:
    """The network with these weights, in evaluation mode on a device. Raises: CheckpointError."""
    load_weights(network, weights)
    channels_last(network).to(device).eval().requires_grad_(False)
    return network

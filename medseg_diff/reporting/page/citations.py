"""Which papers made a result: BibTeX for exactly the parts that were used."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

ALWAYS = ("medseg_diff", "cardoso2022monai")
SOLVERS = {"ddpm": "ho2020denoising", "ddim": "song2021denoising", "dpm_solver_pp": "lu2022dpmsolverpp"}
ENGINES = {
    "inversion": "wolleb2022anomaly",
    "classifier_free": "sanchez2022healthy",
    "anoddpm": "wyatt2022anoddpm",
    "autoddpm": "bercea2023mask",
    "autoencoder": "baur2021autoencoders",
    "cddpm": "behrendt2023guided",
    "conditional_difference": "hu2023conditional",
    "inpainting": "bercea2023mask",
    "latent": "pinaya2022fast",
    "patched": "behrendt2023patched",
    "salient_inversion": "fontanella2024counterfactual",
}
ARXIV = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")


def citations(facts: Mapping[str, Any], papers: str = "") -> list[str]:
    """Entries for what case.json names, and for the arXiv numbers that stand in the recipe's own words `papers`."""
    known = references()
    eprints = {number: key for key, entry in known.items() for number in re.findall(r"eprint = \{(.+?)\}", entry)}
    keys = [*ALWAYS, *(eprints[number] for number in ARXIV.findall(papers) if number in eprints), *_parts(facts)]
    return [known[key] for key in dict.fromkeys(keys)]


@cache
def references() -> dict[str, str]:
    """Every entry of references.bib by its key."""
    text = (files("medseg_diff.reporting.page") / "references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in re.split(r"(?m)^(?=@)", text) if entry.strip()]
    return {re.split(r"[{,]", entry, maxsplit=2)[1]: entry for entry in entries}


def _parts(facts: Mapping[str, Any]) -> Iterator[str]:
    for of, parts in (("solver", SOLVERS), ("engine", ENGINES)):
        kind = (facts.get(of) or {}).get("kind")
        if kind in parts:
            yield parts[kind]
    if facts.get("fusion") == "staple":
        yield "warfield2004staple"
    if facts.get("temperatures"):
        yield "guo2017calibration"
    volumes = facts.get("volume_ml")
    if isinstance(volumes, Mapping) and any(volume["level"] for volume in volumes.values()):
        yield "angelopoulos2021gentle"

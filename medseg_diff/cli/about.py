"""This installation and this machine: `selftest`, `info`."""

import json

import typer

from medseg_diff.cli.options import AsJson
from medseg_diff.errors import ExitCode


def selftest(as_json: AsJson = False) -> None:
    """Check the exact-answer laws of the diffusion engine on this machine."""
    from medseg_diff.tasks.selftest import selftest as run

    verdicts = run()
    if as_json:
        rows = [{"law": v.law, "measured": v.measured, "bound": v.bound, "holds": v.holds} for v in verdicts]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for v in verdicts:
            typer.echo(f"{'ok  ' if v.holds else 'FAIL'} {v.measured:9.2e} ≤ {v.bound:7.1e}  {v.law}")
        typer.echo(f"{sum(v.holds for v in verdicts)} of {len(verdicts)} laws hold")
    if not all(v.holds for v in verdicts):
        raise typer.Exit(int(ExitCode.BUG))


def info(as_json: AsJson = False) -> None:
    """List recipes, the starter model, versions and devices."""
    from medseg_diff.tasks.info import info as run

    found = run()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"medseg-diff {found['medseg_diff']}, Python {found['python']}, {found['system']} {found['machine']}")
    typer.echo("  " + ", ".join(f"{name} {version}" for name, version in found["packages"].items()))
    typer.echo(
        f"devices: {found['cpus']} CPUs" + "".join(f", {gpu['name']} ({gpu['memory']})" for gpu in found["gpus"])
    )
    typer.echo("recipes: " + ", ".join(found["recipes"]))
    if starter := found["starter"]:
        words = f"{starter['name']} ({starter['recipe']}, for `{starter['task']}`, of {starter['patients']} patients)"
        typer.echo(f"included model: {words}: {starter['model_card']}")

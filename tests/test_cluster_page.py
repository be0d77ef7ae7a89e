"""The scripts of docs/cluster.md as they stand, each process of SLURM's stood for by one of this machine."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
SCRIPTS = {
    re.search("--job-name=(\\w+)", text)[1]: text
    for text in re.findall("^```sbatch\n(.*?)^```", PAGE, re.DOTALL | re.M)
}
TORCHRUN = re.search("^torchrun --nproc-per-node 2 .*$", PAGE, re.M)[0]
PROGRAMS = {  # found before any other of that name
    "medseg-diff": f'exec "{sys.executable}" -m medseg_diff "$@"',
    "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
    "scontrol": 'echo "$@" >> requeued',
    "srun": """
for node in 1 0; do
    SLURM_PROCID=$node SLURM_NODEID=$node SLURM_LOCALID=0 MASTER_ADDR=127.0.0.1 "$@" &
    processes="$processes $!"
done
for process in $processes; do wait "$process" || exit 1; done
""",
}


@pytest.fixture
def place(phantoms, trained, tmp_path):
    """A working folder with what the page takes for given, and f(script, **environment) that runs one in it."""
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    shutil.copytree(phantoms.parent, tmp_path, dirs_exist_ok=True)
    shutil.copytree(trained.folder, tmp_path / "runs" / "first")
    shutil.copy(trained.folder / "recipe.yaml", tmp_path / "recipe.yaml")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")

    def run(script, **environment):
        root = str(Path(__file__).parents[1])
        known = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": root}
        known |= {"MLFLOW_TRACKING_URI": "", "SLURM_CPUS_PER_TASK": "1", **environment}
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=known, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    run.folder = tmp_path
    return run


def array(job, tasks=2):
    """The environment of each job of an array."""
    for number in range(1, tasks + 1):
        yield {"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(tasks)}


def test_every_script_of_the_page_is_run_here():
    assert set(SCRIPTS) == {"segment", "folds", "training"} and TORCHRUN


@pytest.mark.soak  # shards are tested in seconds in tests/tasks/apply
def test_an_array_segments_the_cases_of_its_split(place):
    for environment in array(7):
        place(SCRIPTS["segment"], **environment)
    tested = {line.split(",")[0] for line in (place.folder / "cases.csv").read_text().splitlines() if ",test," in line}
    assert len(tested) >= 2
    assert {path.parent.name for path in place.folder.glob("results/*/case.json")} == tested
    assert len((place.folder / "results" / "summary.csv").read_text().splitlines()) == len(tested) + 1


def short(folder):
    """The recipe with few steps."""
    text = (folder / "recipe.yaml").read_text()
    text = re.sub("steps: 20$", "steps: 4", text, flags=re.M)
    (folder / "recipe.yaml").write_text(re.sub("validate_every: 10$", "validate_every: 4", text, flags=re.M))


def test_two_processes_under_torchrun_speak_with_one_voice(place):
    short(place.folder)
    said = place(f"{TORCHRUN} --device cpu --no-mlflow")
    facts = json.loads((place.folder / "runs" / "two" / "run.json").read_text())
    assert facts["finished"] and said.count("step 4: ") == said.count("trained in") == said.count("training on") == 1


@pytest.mark.soak
def test_an_array_trains_the_folds_of_one_study(place):
    short(place.folder)
    for environment in array(8):
        place(SCRIPTS["folds"], **environment)
    assert json.loads((place.folder / "studies" / "folds" / "study.json").read_text())["finished"]
    assert not (place.folder / "requeued").exists()


@pytest.mark.soak
def test_srun_trains_what_torchrun_trains(place):
    short(place.folder)
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_JOB_ID": "15432"}
    slurm |= {"SLURM_JOB_NAME": "training", "SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost"}
    place(SCRIPTS["training"], **slurm)
    place(TORCHRUN)
    one, two = (place.folder / "runs" / name / "weights" / "best.safetensors" for name in ("nodes", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.soak
def test_a_number_of_tasks_that_says_nothing_of_nodes_is_refused(place):
    script = "medseg-diff train-seg --data cases.csv --config recipe.yaml --out runs/odd"
    slurm = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "training"}
    with pytest.raises(AssertionError, match=r"error: these 2 processes cannot train together: .*--ntasks-per-node"):
        place(script, **slurm)

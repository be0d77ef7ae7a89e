"""The front door: exit codes, one-line errors, JSON where a script reads it, and no heavy import on the way."""

import json
import logging
import shutil
import subprocess
import sys

import pytest

from medseg_diff import __version__, cli
from medseg_diff.errors import CheckpointError, Diverged, ImageError, Preempted

VERBS = ("demo", "phantom", "prepare", "validate", "train-seg", "segment", "tune", "evaluate", "selftest", "info")
HEAVY = ("torch", "monai", "pandas", "mlflow", "SimpleITK", "skimage", "lightning_fabric", "matplotlib")


@pytest.fixture
def call(monkeypatch, capsys):
    """medseg-diff WORDS in this process → (exit code, stdout, stderr)."""
    log = logging.getLogger("medseg_diff")
    handlers, level, propagate = log.handlers[:], log.level, log.propagate

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["medseg-diff", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    yield run
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


def one_line(err):
    return err.count("\n") == 1 and err.startswith("error: ") and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code", "most", "spared"),
    [(("--help",), 0, 220, {"numpy", "pydantic"}), (("validate", "--data", "none.csv"), 2, 480, {"scipy", "nibabel"})],
)
def test_it_starts_with_few_modules(words, code, most, spared):
    """What a start costs on any machine; `benchmarks.startup` has the seconds."""
    program = (
        "import atexit, json, sys; from medseg_diff import cli\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr)); cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert done.returncode == code and len(modules) < most, len(modules)
    assert not modules & (spared | set(HEAVY))


def test_segment_calls_its_network_before_it_imports_what_others_need(trained, tmp_path):
    """Lightning Fabric brings torch's compiler with it: seconds, and nobody trains here."""
    program = (
        "import json, os, sys; from torch.nn.modules.module import register_module_forward_pre_hook\n"
        "from medseg_diff import cli\n"
        "def called(*_): print(json.dumps(sorted(sys.modules)), flush=True); os._exit(99)\n"
        "register_module_forward_pre_hook(called); cli.main()"
    )
    words = ["--volume", trained.table.parent / "phantom_0000", "--model", trained.folder, "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", program, "segment", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 99, done.stderr
    assert not {"lightning_fabric", "torch._dynamo", "SimpleITK"} & set(json.loads(done.stdout))  # monai has the others


def test_help_names_every_verb():
    done = subprocess.run([sys.executable, "-m", "medseg_diff", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(verb in done.stdout for verb in VERBS) and done.stderr == ""


def test_help_validate_and_info_import_nothing_heavy(phantoms):
    lines = [
        ["--help"],
        ["--version"],
        ["info", "--json"],
        ["validate", "--data", str(phantoms), "--json"],
        ["nonsense"],
    ]
    lines += [[verb, "--help"] for verb in VERBS]
    code = (
        "import json, sys; from medseg_diff import cli\n"
        f"for words in json.loads({json.dumps(lines)!r}):\n"
        "    sys.argv = ['medseg-diff', *words]\n"
        "    try: cli.main()\n"
        "    except SystemExit as ended: print('code', ended.code)\n"
        f"found = {set(HEAVY)!r} & set(sys.modules)\n"
        "sys.exit(f'{words} imported {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("code 0") == len(lines) - 1 and done.stdout.count("code 2") == 1


@pytest.mark.parametrize("words", [["--version"], ["segment", "--version"], ["-q", "--version"]])
def test_the_version(call, words):
    assert call(*words) == (0, f"medseg-diff {__version__}\n", "")


def test_without_a_word_the_help_is_shown(call):
    code, out, err = call()
    assert code == 2 and all(verb in out + err for verb in VERBS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["segment"], "Missing option '-o' / '--out'"),
        (["segment", "--out", "x", "--nonsense"], "No such option: --nonsense"),
        (["segment", "--out", "x", "--members", "0"], "'--members'"),
        (["segment", "--out", "x", "--seed", "a"], "'--seed'"),
        (["segment", "--out", "x", "--shard", "1"], "write it as K/N"),
        (["segment", "--out", "x", "--guarantee", "0.1"], "write it as fnr=NUMBER"),
        (["anomaly", "--out", "x", "--guarantee", "1"], "write it as fp_ml=NUMBER"),
        (["segment", "--out", "x"], "one of --volume and --data is needed. Fix: name a scan, or a table of cases."),
        (["train-seg", "--data", "gone.csv", "--config", "nope"], "no recipe `nope` for segment. Fix: use one of"),
        (["train-seg", "--data", "gone.csv", "training.stps=1"], "did you mean `steps`?"),
        (["train-seg", "--data", "gone.csv", "training"], "`training` is not a setting. Fix: write key=value"),
        (["train-seg", "--data", "gone.csv"], "no such table"),
        (["validate", "--data", "gone.csv"], "no such table"),
        (["validate", "--data", "gone.csv", "--json"], "no such table"),
        (["anomaly", "--out", "x", "--volume", "v", "--runs", "none"], "`anomaly` under none/, which does not exist"),
        (["segment", "--out", "x", "--volume", "v", "--runs", "none"], "`segment` under none/, which does not exist"),
        (["prepare", ".", "--source", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_word_is_exit_2_and_one_line(call, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*words)
    assert (code, out) == (2, "") and one_line(err), err
    assert said in err and "Fix: " in err
    assert list(tmp_path.iterdir()) == []


def test_bad_images_are_exit_3(call, trained, tmp_path):
    folder = tmp_path / "patient"
    shutil.copytree(trained.table.parent / "phantom_0000", folder)
    flair = folder / "flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:-100])
    code, out, err = call("segment", "-q", "--volume", folder, "--model", trained.folder, "--out", tmp_path / "out")
    assert (code, out) == (3, "") and one_line(err) and err.startswith("error: [patient/flair] flair.nii.gz: ")
    code, out, err = call(
        "segment", "-q", "--volume", tmp_path / "no", "--model", trained.folder, "--out", tmp_path / "o"
    )
    assert code == 3 and one_line(err) and "no such file or folder" in err


def test_a_bad_checkpoint_is_exit_4(call, trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "model")
    weights = tmp_path / "model" / "weights" / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for model in (tmp_path / "model", tmp_path / "gone"):
        code, out, err = call("segment", "-q", "--volume", tmp_path, "--model", model, "--out", tmp_path / "out")
        assert (code, out) == (4, "") and one_line(err) and str(tmp_path) not in err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ImageError("is odd", fix="mend it", case="a", file="b.nii"), 3, "error: [a] b.nii: is odd. Fix: mend it.\n"),
        (CheckpointError("x"), 4, "error: x.\n"),
        (Diverged("x"), 6, "error: x.\n"),
        (Preempted("wrote a checkpoint"), 75, "stopped: wrote a checkpoint.\n"),
        (OSError(28, "No space left on device", "/some/where/a.nii"), 5, "error: a.nii: No space left on device. Fix:"),
        (PermissionError(13, "Permission denied", "/some/where/b"), 5, "error: b: Permission denied. Fix:"),
        (MemoryError(), 5, "error: out of memory. Fix: lower --network-batch"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("by zero"), 1, "error: a bug in medseg-diff: ZeroDivisionError: by zero. Fix: report it"),
    ],
)
def test_every_fault_has_its_exit_code_and_line(call, monkeypatch, error, code, said):
    from medseg_diff.tasks import info

    def fail():
        raise error

    monkeypatch.setattr(info, "info", fail)
    found, out, err = call("info")
    assert (found, out) == (code, "") and err.startswith(said) and "/some/where" not in err and "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch, capsys):
    from medseg_diff.tasks import info

    monkeypatch.setattr(info, "info", lambda: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["medseg-diff", "info", "--debug"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" in said and said.endswith("Fix: report it, with --debug.\n")


def test_debug_keeps_the_exit_code(monkeypatch, call):
    from medseg_diff.tasks import info

    def stopped():
        raise Preempted("the job is ending", fix="resume it")

    monkeypatch.setattr(info, "info", stopped)
    code, _, err = call("info", "--debug")
    assert code == 75 and "Traceback" in err and "stopped: the job is ending" in err


def test_info(call):
    code, out, err = call("info", "--json")
    assert code == 0 and err == "" and "segment/mask_logits" in json.loads(out)["recipes"]
    code, out, _ = call("info")
    assert code == 0 and "quick/wolleb" in out and __version__ in out


def test_validate(call, phantoms, tmp_path):
    code, out, err = call("validate", "--data", phantoms, "--json")
    known = json.loads(out)
    assert (code, err) == (0, "") and (known["cases"], known["problems"], known["warnings"]) == (10, [], [])
    assert known["table"]["references"] == len(known["per_case"]) == 10
    code, out, err = call("validate", "--data", phantoms, "--workers", "2")
    assert code == 0 and out.startswith("10 cases of 10 patients: ")
    assert "\n10 cases, no problems\nnext: medseg-diff train-seg" in out
    (tmp_path / "cases.csv").write_text("case,t1\na,a.nii.gz\nb,b.nii.gz\n")
    code, out, err = call("validate", "--data", tmp_path / "cases.csv", "--json")
    assert (code, err) == (3, "")
    assert [(p["case"], p["channel"], p["exit_code"]) for p in json.loads(out)["problems"]] == [
        ("a", "t1", 3),
        ("b", "t1", 3),
    ]
    code, out, err = call("validate", "--data", tmp_path / "cases.csv")
    assert code == 3 and out == "" and [line[:11] for line in err.splitlines()] == ["error: [a/t", "error: [b/t"]


def test_selftest(call, monkeypatch):
    from medseg_diff.diffusion import laws

    monkeypatch.setattr(
        laws, "all_laws", lambda: iter([laws.Law("good", lambda: 0.5, 1.0), laws.Law("better", lambda: 0.1, 0.2)])
    )
    code, out, err = call("selftest", "--json")
    assert (code, err) == (0, "") and json.loads(out)[0] == {
        "law": "good",
        "measured": 0.5,
        "bound": 1.0,
        "holds": True,
    }
    assert "2 of 2 laws hold" in call("selftest")[1]
    for broken in (2.0, float("nan")):
        monkeypatch.setattr(laws, "all_laws", lambda broken=broken: iter([laws.Law("bad", lambda: broken, 1.0)]))
        code, out, _ = call("selftest")
        assert code == 1 and "FAIL" in out and "0 of 1 laws hold" in out


def test_segment_and_the_words_that_may_stand_anywhere(call, trained, tmp_path):
    patient = trained.table.parent / "phantom_0000"
    words = ["segment", "--volume", patient, "--model", trained.folder, "--members", 1, "--steps", 1, "--device", "cpu"]
    code, out, err = call(*words, "--out", tmp_path / "a")
    assert code == 0 and out == f"{tmp_path / 'a' / 'phantom_0000'}\n" and "1 step × 1 member" in err
    for quiet in ([*words, "-q"], ["-q", *words], [*words, "--quiet", "--no-progress"]):
        code, out, err = call(*quiet, "--out", tmp_path / "a", "--overwrite")
        assert (code, err) == (0, "") and out.endswith("phantom_0000\n")


def test_segment_and_anomaly_answer_in_json(call, trained, untrained_anomaly, tmp_path):
    patient = trained.table.parent / "phantom_0000"
    words = ["--volume", patient, "--device", "cpu", "--json", "--out"]
    code, out, _ = call("segment", *words, tmp_path / "a", "--model", trained.folder, "--members", 1, "--steps", 1)
    (row,) = json.loads(out)
    report = json.loads((tmp_path / "a" / "phantom_0000" / "case.json").read_text())
    assert (code, row["case"], row["task"]) == (0, "phantom_0000", "segment")
    assert row["whole_tumour_volume_ml"] == report["volume_ml"]["whole_tumour"]["mask"]
    assert row["whole_tumour_low_ml"] is None and row["warnings"] == len(report["warnings"])
    model = ["--model", untrained_anomaly.folder]
    code, out, _ = call("anomaly", *words, tmp_path / "b", *model, "--threshold", 0.5)
    assert code == 0 and [row["task"] for row in json.loads(out)] == ["anomaly"]
    code, out, err = call("anomaly", *words, tmp_path / "c", *model, "--sweep", "-q")
    assert (code, out) == (2, "") and one_line(err) and "--sweep writes none" in err


def test_segment_refines_the_masks_of_another_program(call, trained, tmp_path):
    """The story of somebody who has a folder of nnU-Net's masks: samples, uncertainty, and how good they are now."""
    for folder in trained.table.parent.glob("phantom_*"):
        (tmp_path / "nnunet").mkdir(exist_ok=True)
        shutil.copy(folder / "seg.nii.gz", tmp_path / "nnunet" / f"{folder.name}.nii.gz")
    words = ["segment", "--data", trained.table, "--split", "test", "--model", trained.folder, "--device", "cpu"]
    words += ["--members", 2, "--steps", 1, "--start-from", tmp_path / "nnunet", "--out", tmp_path / "out"]
    code, out, err = call(*words, "--strength", 0.25, "--json")
    rows = json.loads(out)
    assert code == 0 and len(rows) == 2 and all(row["whole_tumour_volume_ml"] >= 0 for row in rows)
    said = "from masks of nnunet, regions of recipe quick-phantom: whole_tumour (labels 1, 2, 4), noised to t = 250 of 1000"
    assert said in err
    code, _, err = call(*words, "-q")
    assert code == 2 and one_line(err) and "was made with strength 0.25, not 0.5" in err
    (tmp_path / "nnunet" / f"{rows[0]['case']}.nii.gz").unlink()
    code, _, err = call(*words, "--strength", 0.25, "-q")
    assert code == 3 and one_line(err) and f"[{rows[0]['case']}] has no mask" in err and "to nnunet" in err
    code, out, _ = call("evaluate", "--predictions", tmp_path / "out", "--data", trained.table, "--no-mlflow")
    assert code == 0 and "dice" in out


def test_channels_may_be_named_one_by_one(call, trained, tmp_path):
    patient = trained.table.parent / "phantom_0001"
    volumes = [
        word for name in ("flair", "t2", "t1ce", "t1") for word in ("--volume", f"{name}={patient / name}.nii.gz")
    ]
    words = ["--model", trained.folder, "--members", 1, "--steps", 1, "--device", "cpu", "--out", tmp_path]
    code, _, err = call("segment", *volumes, *words)
    assert code == 0 and "took the files named: t1=t1.nii.gz" in err
    assert (tmp_path / "phantom_0001" / "mask.nii.gz").is_file()
    code, _, err = call("segment", *volumes[:-2], *words, "-q")
    assert code == 2 and one_line(err) and "no file is given for t1" in err
    for number, name in enumerate(("t2", "flair", "t1", "t1ce")):
        (tmp_path / f"p_{number:04}.nii.gz").symlink_to(patient / f"{name}.nii.gz")
    named = ["--volume", tmp_path / "p_0002.nii.gz", "--channels", "T2, flair,t1,T1-Gd"]
    code, _, err = call("segment", *named, *words)
    assert code == 0 and "took t1=p_0002.nii.gz, t1ce=p_0003.nii.gz, t2=p_0000.nii.gz, flair=p_0001.nii.gz" in err
    code, _, err = call("segment", *named[:-1], "", *words, "-q")
    assert code == 2 and one_line(err) and "--channels has an empty name" in err


def test_phantom_and_evaluate(call, trained, tmp_path):
    code, out, _ = call("phantom", tmp_path / "p", "--cases", 1, "--shape", 32, 32, 32, "--healthy", 0)
    table = tmp_path / "p" / "cases.csv"
    assert code == 0 and out.startswith(f"{table}\n") and table.is_file()
    words = ["--model", trained.folder, "--members", 1, "--steps", 1, "--device", "cpu", "--out", tmp_path / "out"]
    code, out, _ = call("segment", "--data", table, *words)
    assert code == 0 and out == f"next: medseg-diff evaluate --predictions {tmp_path / 'out'} --data {table}\n"
    shutil.copy(table, tmp_path / "a table.csv")
    elsewhere = ["--data", tmp_path / "a table.csv", "--data-root", table.parent]
    code, out, _ = call("segment", *elsewhere, *words)
    assert code == 0 and out.endswith(f"--data '{tmp_path / 'a table.csv'}' --data-root {table.parent}\n")
    code, out, _ = call("segment", *elsewhere, *words[:-1], tmp_path / "new", "--pseudonymise", "--runs", tmp_path)
    assert (
        code == 0 and "next:" not in out and out.startswith(f"{tmp_path / 'new' / 'case_'}")
    )  # the table's are others
    code, out, _ = call("evaluate", "--predictions", tmp_path / "out", "--data", table, "--json")
    assert code == 0 and json.loads(out)["cases"] == 1
    code, out, _ = call("evaluate", "--predictions", tmp_path / "out", "--data", table)
    assert code == 0 and out.startswith("phantom, 1 case\n  dice ")
    assert (tmp_path / "out" / "evaluation.png").is_file()
    other = [*words[:-1], tmp_path / "other", "--fusion", "vote", "--calibrated"]
    code, _, _ = call("segment", "--data", table, *other)
    assert code == 0 and (tmp_path / "other" / "phantom_0000" / "calibrated.nii.gz").is_file()
    pair = ["--predictions", tmp_path / "out", "--compare", tmp_path / "other", "--data", table, "--no-figure"]
    code, out, _ = call("evaluate", *pair)
    assert code == 0 and "\nother against out: 1 case of 1 patient" in out
    code, out, _ = call("evaluate", *pair, "--json")
    found = json.loads(out)["comparison"]
    assert code == 0 and found == json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert not (tmp_path / "other" / "evaluation.png").exists()


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m medseg_diff info --json | head -c 1", shell=True, capture_output=True, text=True
    )
    assert done.stdout == "{" and done.stderr == ""


def test_an_option_that_became_a_setting_is_told_so(call):
    code, _, err = call("anomaly", "--volume", "a", "--out", "b", "--depth", "100")
    assert (
        code == 2
        and one_line(err)
        and err == ("error: --depth is now a setting of the engine. Fix: write engine.depth=….\n")
    )

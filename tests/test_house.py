"""Laws that hold for the whole house, read off its source."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medseg_diff

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medseg_diff"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.stat().st_size)
FOLDERS = ("medseg_diff", "configs", "pipelines", "benchmarks", "notebooks", "tests", "data_manifests", "docker")
WRITTEN = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".yaml", ".yml", ".md", ".csv", ".toml", ".ipynb"} or path.name == "Dockerfile"
)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_in_one_sentence_what_it_is_for(path):
    text = ast.get_docstring(tree_of(path))
    assert text, "no docstring"
    first = text.splitlines()[0]
    assert first.endswith(".") and len(first.split()) >= 4, first
    assert first[0].isupper() or first.startswith("`"), first


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("os", "system"),
    ("os", "popen"),
    ("shutil", "unpack_archive"),
    ("torch", "load"),  # weights are safetensors
}
FORBIDDEN_METHODS = {"extractall", "full_load"}
FORBIDDEN_KEYWORDS = {("shell", True), ("weights_only", False), ("allow_pickle", True), ("trust_remote_code", True)}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "timm", "torchvision"}


def dangers_in(tree):
    """Whatever runs what a file or a person says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and (node.value.id, node.attr) in FORBIDDEN_ATTRIBUTES:
                yield f"{node.value.id}.{node.attr}"
            if node.attr in FORBIDDEN_METHODS:
                yield f".{node.attr}"
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                yield f"{node.func.id}("
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if any(keyword.arg == name and value is wrong for name, wrong in FORBIDDEN_KEYWORDS):
                    yield f"{keyword.arg}={value}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_runs_what_a_file_says(path):
    assert list(dangers_in(tree_of(path))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec('1')",
        "yaml.load(f)",
        "run(c, shell=True)",
        "archive.extractall(p)",
        "torch.load(p)",
        "read(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
    ],
)
def test_the_search_for_dangers_finds_them(code):
    assert list(dangers_in(ast.parse(code)))


def test_safe_spellings_are_not_dangers():
    assert not list(dangers_in(ast.parse("network.eval()\nre.compile('x')\nnp.load(p, allow_pickle=False)")))


MACHINE_PATH = re.compile(r"(?<![\w.:/~$}])/(home|root|Users|work|mnt|data|scratch|tmp|opt|srv|media)/\w")


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_no_file_names_a_path_of_some_machine(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if MACHINE_PATH.search(line) and "MACHINE_PATH" not in line] == []


def test_the_readme_names_every_top_level_folder():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.iterdir())}
    folders = {name for name in folders - ignored if not name.startswith((".", "_")) and "egg-info" not in name}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"medseg_diff", "configs", "tests"} <= folders
    assert sorted(name for name in folders if f"{name}/" not in readme) == []


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, medseg_diff; from medseg_diff import validate, info, phantom, prepare; "
        "found = {'torch', 'monai', 'pandas', 'mlflow', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_verb_is_a_function_of_the_package():
    for name in medseg_diff.__all__:
        assert getattr(medseg_diff, name) is not None
    verbs = set(medseg_diff.__all__) - {"__version__", *medseg_diff.NOUNS}
    assert verbs == set(medseg_diff.VERBS)
    assert set(medseg_diff.__all__) <= set(dir(medseg_diff))
    cli = importlib.import_module("medseg_diff.cli")
    registered = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert {name.replace("-", "_") for name in registered} == verbs
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = medseg_diff.nonsense


def test_every_package_folder_has_its_init():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [name_of(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []

"""Every bad recipe or `key=value`: exit code 2 and a line with the dotted path, or the place in the file, and the remedy."""

import os

import pytest

GOOD = """task: segment
paper: none
channels: [t1]
regions: {whole_tumour: [1]}
schedule: {kind: cosine, length: 1000}
training:
  steps: 10
"""


def changed(before: str, after: str) -> str:
    assert before in GOOD
    return GOOD.replace(before, after)


def nested(depth: int) -> str:
    return GOOD + "paper2: " + "[" * depth + "]" * depth + "\n"


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 12)
)

FILES = {
    # the file
    "empty": ("", "is not a mapping of settings"),
    "a comment": ("# nothing\n", "is not a mapping of settings"),
    "a list": ("- 1\n- 2\n", "is not a mapping of settings"),
    "a word": ("hello\n", "is not a mapping|not a readable YAML"),
    "not YAML": ("a: [1\n", "not a readable YAML"),
    "tabs": ("a:\n\t- 1\n", "not a readable YAML"),
    "not text": (b"\xff\xfe\x00\x01" * 40, "not a readable YAML"),
    "latin-1": ("paper: M\xfcller\n".encode("latin-1"), "not a readable YAML"),
    "null bytes": (b"paper: a\0b\n", "not a readable YAML"),
    "web page": ("<!DOCTYPE html><html><body>x</body></html>", "is not a mapping|not a readable YAML"),
    "two documents": (GOOD + "---\n" + GOOD, "not a readable YAML"),
    "a million laughs": (LAUGHS, "an anchor or alias"),
    "one alias": (changed("steps: 10", "steps: &n 10\n  batch: *n"), "line 7, column 10: an anchor or alias"),
    "merge": ("base: &b {steps: 1}\n" + GOOD + "  <<: *b\n", "an anchor or alias"),
    "too deep": (nested(200), "too deeply nested or too long for a recipe"),
    "too long": (GOOD + "more: [" + "0," * 30_000 + "]\n", "too deeply nested or too long for a recipe"),
    "too large": (GOOD + "#" * 2**20, "up to 1 MB"),
    # what it must not do
    "python object": ("a: !!python/object/apply:os.system ['true']\n", "the tag tag:yaml.org,2002:python/object"),
    "python name": ("a: !!python/name:os.system\n", "the tag tag:yaml.org,2002:python/name"),
    "own tag": ("a: !Evil 1\n", "the tag !Evil"),
    "binary tag": ("paper: !!binary aGVsbG8=\n", "the tag tag:yaml.org,2002:binary"),
    "environment": (changed("paper: none", "paper: ${oc.env:HOME}"), "refers to something else"),
    "environment in a key": (GOOD + "${oc.env:HOME}: 1\n", "refers to something else"),
    "reference": (changed("steps: 10", "steps: ${training.batch}"), "refers to something else"),
    # wrong settings
    "unknown key": (GOOD + "chanels: [t1]\n", "unknown setting `chanels`. Fix: did you mean `channels`?"),
    "unknown inner key": (GOOD + "  stps: 3\n", "unknown setting `training.stps`. Fix: did you mean `steps`?"),
    "key twice": (GOOD + "paper: other\n", "duplicate"),
    "inner key twice": (GOOD + "  steps: 11\n", "duplicate"),
    "missing": (changed("channels: [t1]\n", ""), "setting `channels` is missing"),
    "text for a number": (changed("steps: 10", "steps: ten"), "`training.steps`: input should be a valid integer"),
    "number in quotes": (changed("steps: 10", "steps: '10'"), "`training.steps`"),
    "fraction": (changed("steps: 10", "steps: 10.5"), "`training.steps`"),
    "truth for a number": (changed("steps: 10", "steps: true"), "`training.steps`"),
    "nothing": (changed("steps: 10", "steps:"), "`training.steps`"),
    "zero": (changed("steps: 10", "steps: 0"), "greater than or equal to 1"),
    "negative": (changed("steps: 10", "steps: -1"), "greater than or equal to 1"),
    "not a number": (changed("steps: 10", "learning_rate: .nan"), "is beyond any setting"),
    "infinite": (changed("steps: 10", "learning_rate: .inf"), "is beyond any setting"),
    "beyond floats": (changed("steps: 10", "learning_rate: 1e999"), "is beyond any setting"),
    "a hundred digits": (changed("steps: 10", "steps: " + "9" * 100), "is beyond any setting"),
    "octal": (changed("steps: 10", "steps: 010"), "line 7, column 10: 010 would be read as another number"),
    "base sixty": (changed("steps: 10", "steps: 10:30"), "10:30 would be read as another number"),
    "underscores": (changed("steps: 10", "steps: 1_000"), "1_000 would be read as another number"),
    "a map for a number": (changed("steps: 10", "steps: {a: 1}"), "`training.steps`"),
    "a list for a map": (changed("training:\n  steps: 10\n", "training: [1]\n"), "`training`"),
    "a number for a list": (changed("[t1]", "7"), "`channels`"),
    "no channel": (changed("[t1]", "[]"), "`channels`"),
    "channel twice": (changed("[t1]", "[t1, t1]"), "a channel is named twice"),
    "path as channel": (changed("[t1]", "[../../evil]"), "`channels.0`"),
    "path as region": (changed("whole_tumour", "../evil"), "`regions"),
    "label zero": (changed("[1]", "[0]"), "every region needs labels"),
    "unknown kind": (changed("cosine", "cosin"), "`schedule.kind`"),
    "date": (changed("paper: none", "paper: 2020-01-01"), ""),
    "absurd network": (GOOD + "network: {kind: unet, width: 4096}\n", "`network.width`"),
    "absurd multipliers": (
        GOOD + "network: {kind: unet, width: 2048, multipliers: [64, 64], attention: []}\n",
        "parameters is too large; lower",
    ),
}  # fmt: skip
READ_AS_TEXT = {"date"}  # and then the table is what is missing


@pytest.mark.parametrize("how", FILES)
def test_a_bad_recipe_is_refused(refused, tmp_path, how):
    text, said = FILES[how]
    (tmp_path / "odd.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    names = "" if how in READ_AS_TEXT else "odd.yaml: "
    line = refused(2, "train-seg", "--data", tmp_path / "none.csv", "--config", tmp_path / "odd.yaml", names=names)
    assert any(words in line for words in said.split("|")), line


def test_the_recipe_that_these_are_made_of_is_good(refused, tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    words = ("train-seg", "--data", tmp_path / "none.csv", "--config", tmp_path / "good.yaml")
    refused(2, *words, names="none.csv: no such table")


def test_a_secret_of_the_environment_stays_there(call, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEG_SECRET", "hunter2")
    (tmp_path / "odd.yaml").write_text(changed("paper: none", "paper: '${oc.env:MEDSEG_SECRET}'"))
    words = ("train-seg", "--data", tmp_path / "none.csv", "--config")
    for line in (call(*words, tmp_path / "odd.yaml"), call(*words, "quick/phantom", "paper=${oc.env:MEDSEG_SECRET}")):
        assert line[0] == 2 and "hunter2" not in "".join(line[1:])


def test_what_is_no_file(refused, tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("folder.yaml", "pipe.yaml", "gone.yaml", "missing/gone.yaml"):
        words = ("train-seg", "--data", tmp_path / "none.csv", "--config", tmp_path / name)
        refused(2, *words, says="no such recipe file")


OVERRIDES = {
    "no value": ("training.steps", "`training.steps` is not a setting"),
    "no key": ("=3", "is not a setting"),
    "dots": ("..=3", "is not a setting"),
    "brackets": ("a[0]=3", "is not a setting"),
    "flag": ("--steps=3", "No such option"),
    "unknown": ("training.stps=3", "did you mean `steps`?"),
    "unknown group": ("trainig.steps=3", "did you mean `training`?"),
    "private": ("__class__.__init__=3", "unknown setting"),
    "text": ("training.steps=ten", "`training.steps`"),
    "zero": ("training.steps=0", "greater than or equal to 1"),
    "huge": ("training.steps=" + "9" * 60, "is beyond any setting"),
    "infinite": ("training.learning_rate=inf", "`training.learning_rate`|beyond any setting"),
    "not a number": ("training.learning_rate=nan", "`training.learning_rate`|beyond any setting"),
    "open bracket": ("view.size=[1,", "cannot apply"),
    "reference": ("paper=${channels}", "refers to something else"),
    "environment": ("paper=${oc.env:PATH}", "refers to something else"),
    "below a number": ("training.steps.more=3", "`training.steps`|cannot apply|unknown setting"),
    "unknown kind": ("sampling.solver.kind=magic", "`sampling.solver"),
    "escape": ("training.\x1b[2J=3", "is not a setting"),
}


@pytest.mark.parametrize("how", OVERRIDES)
def test_a_bad_override_is_refused(refused, tmp_path, how):
    word, said = OVERRIDES[how]
    line = refused(2, "train-seg", "--data", tmp_path / "none.csv", "--config", "quick/phantom", word)
    assert any(words in line for words in said.split("|")), line

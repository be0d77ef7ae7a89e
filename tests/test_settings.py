"""Settings are strict: a wrong word or type is refused in one line that names the nearest right one."""

from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from medseg_diff.errors import ConfigError, Problems
from medseg_diff.settings import Settings, apply_overrides, parse_settings, read_yaml, write_yaml


class Inner(Settings):
    renamed: ClassVar = {"rate": "learning_rate"}

    kind: Literal["inner"] = "inner"
    learning_rate: float = Field(default=1e-4, gt=0)
    steps: int = Field(default=10, ge=1)


class Other(Settings):
    kind: Literal["other"] = "other"
    width: int = 8


class Outer(Settings):
    renamed: ClassVar = {"dimensions": "size", "training.colour": "flag"}

    name: str
    size: tuple[int, int] = (4, 4)
    training: Inner = Inner()
    part: Annotated[Inner | Other, Field(discriminator="kind")] = Inner()
    flag: bool = False


def parse(**data):
    return parse_settings(Outer, {"name": "x"} | data, source="recipe.yaml")


def refused(**data):
    with pytest.raises(ConfigError) as caught:
        parse(**data)
    return caught.value.line


def test_what_is_given_is_what_stands_there():
    found = parse(size=[3, 5], training={"steps": 7}, part={"kind": "other", "width": 3})
    assert (found.size, found.training.steps, found.training.learning_rate) == ((3, 5), 7, 1e-4)
    assert found.part == Other(width=3)


def test_unknown_names_are_refused_with_the_nearest_known_one():
    assert refused(trainning={}) == "recipe.yaml: unknown setting `trainning`. Fix: did you mean `training`?"
    line = refused(training={"learning_rat": 1.0})
    assert line == "recipe.yaml: unknown setting `training.learning_rat`. Fix: did you mean `learning_rate`?"
    assert "unknown setting `part.widht`. Fix: did you mean `width`?" in refused(part={"kind": "other", "widht": 3})
    assert "Fix: known here: flag, name, part, size, training." in refused(zzz=1)


@pytest.mark.parametrize(
    ("old", "dotted", "now"),
    [
        ({"dimensions": [3, 5]}, "dimensions", "size"),
        ({"training": {"colour": True}}, "training.colour", "flag"),
        ({"training": {"rate": 1.0}}, "training.rate", "training.learning_rate"),
        ({"part": {"kind": "inner", "rate": 1.0}}, "part.rate", "part.learning_rate"),
    ],
)
def test_a_setting_of_older_recipes_is_refused_with_its_present_name(old, dotted, now):
    assert refused(**old) == f"recipe.yaml: setting `{dotted}` is now called `{now}`. Fix: write `{now}`."


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"training": {"steps": "7"}}, "setting `training.steps`: input should be a valid integer (found '7')"),
        ({"training": {"steps": 1.5}}, "`training.steps`"),
        ({"training": {"steps": 0}}, "greater than or equal to 1 (found 0)"),
        ({"training": {"steps": True}}, "`training.steps`"),
        ({"flag": 1}, "`flag`: input should be a valid boolean (found 1)"),
        ({"size": [1, 2, 3]}, "`size`"),
        ({"size": 3}, "`size`"),
        ({"training": 3}, "`training`"),
        ({"part": {"kind": "third"}}, "`part`"),
        ({"training": {"learning_rate": float("nan")}}, "not plain data"),
    ],
)
def test_wrong_types_and_values_are_refused_with_what_was_found(wrong, said):
    line = refused(**wrong)
    assert said in line and "\n" not in line and line.startswith("recipe.yaml: ")


def test_a_missing_setting_is_named():
    with pytest.raises(ConfigError, match=r"setting `name` is missing. Fix: add `name`"):
        parse_settings(Outer, {}, source="recipe.yaml")


def test_all_faults_are_told_together():
    with pytest.raises(Problems) as caught:
        parse(flag=1, sise=[1, 2], training={"steps": 0})
    assert len(caught.value.lines) == 3 and caught.value.exit_code == 2


def test_settings_never_change():
    found = parse()
    with pytest.raises(ValueError, match="frozen"):
        found.flag = True
    assert found.but(flag=True).flag and not found.flag
    with pytest.raises(ValueError, match="training"):
        found.but(training={"steps": 0})


def test_yaml_is_read_as_one_would_think(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("rate: 1e-4\nnames: [on, 'no']\nnothing: null\n1: one\n")
    found = read_yaml(path)
    assert found["rate"] == 1e-4 and found["nothing"] is None and found["1"] == "one"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "a.yaml: not a readable YAML file: .*duplicate"),
        ("a: [1\n", "not a readable YAML file"),
        ("- 1\n- 2\n", "is not a mapping of settings"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1, column 4: the tag"),
        ("a: ${nowhere}\n", "refers to something else"),
    ],
)
def test_unreadable_yaml_is_refused_in_one_line(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in caught.value.line and str(tmp_path) not in caught.value.line


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"^b.yaml: no such file"):
        read_yaml(tmp_path / "b.yaml")


def test_overrides_lie_on_top_and_leave_the_rest():
    data = {"name": "x", "training": {"steps": 3, "learning_rate": 0.1}}
    found = apply_overrides(data, ["training.steps=500", "size=[2,3]", "training.learning_rate=1e-3", "flag=true"])
    assert found == {
        "name": "x",
        "training": {"steps": 500, "learning_rate": 1e-3},
        "size": [2, 3],
        "flag": True,
    }
    assert data["training"]["steps"] == 3
    assert "did you mean `steps`?" in refused(**apply_overrides({}, ["training.step=5"]))


@pytest.mark.parametrize("word", ["training.steps", "=3", "..=3", ""])
def test_what_is_no_override_is_refused(word):
    with pytest.raises(ConfigError, match=r"is not a setting. Fix: write key=value"):
        apply_overrides({}, [word])


@pytest.mark.parametrize("word", ["a=[1", "a=${b}", "a.b.c={"])
def test_an_override_that_cannot_be_read_is_refused(word):
    with pytest.raises(ConfigError, match=r"cannot apply|refers to something else"):
        apply_overrides({"a": 1}, [word])


def test_written_yaml_reads_back_as_the_same_settings(tmp_path):
    found = parse(size=[3, 5], training={"learning_rate": 2.5e-5}, part={"kind": "other"})
    (tmp_path / "a.yaml").write_text(write_yaml(found))
    assert parse_settings(Outer, read_yaml(tmp_path / "a.yaml"), source="a.yaml") == found


def test_a_map_written_out_replaces_the_old_one():
    data = {"regions": {"whole": [1, 2]}, "solver": {"kind": "ddpm", "variance": "learned"}}
    assert apply_overrides(data, ["regions={core: [1]}"])["regions"] == {"core": [1]}
    assert apply_overrides(data, ["solver.kind=ddim", "solver.eta=0.5"])["solver"] == {"kind": "ddim", "eta": 0.5}
    assert apply_overrides(data, ["solver.kind=ddpm"])["solver"] == data["solver"]

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from ai.lab import Config, Trial
from ai.lab.config import diff, flatten, override
from ai.lab.configuration.plain_values import to_plain
from ai.lab.configuration.typed_fields import from_plain
from ai.lab.configuration.yaml_file import parse_yaml, read_yaml, write_yaml


class Mode(enum.Enum):
    FAST = 1
    EXACT = 2


@dataclass(frozen=True)
class Net(Config):
    dim: int = 64
    norm: Literal["batch", "layer"] | None = None
    widths: tuple[int, ...] = (8, 16)


@dataclass
class Run(Config):
    name: str
    lr: float = 0.1
    net: Net = field(default_factory=Net)
    mode: Mode = Mode.FAST
    data: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    resume: bool = False


FULL = Run(
    "a", 1e-4, Net(32, "layer", (1, 2, 3)), Mode.EXACT, Path("/data"), {"l1": 0.5, "ssim": 1.0}, (0.0, 0.99), True
)


def test_a_config_comes_back_from_its_file_equal(tmp_path):
    FULL.save(tmp_path / "config.yaml")
    assert Run.load(tmp_path / "config.yaml") == FULL


def test_what_is_recorded_of_a_config_is_plain_and_its_dataclass_makes_the_same_of_it(tmp_path):
    kept = Trial(tmp_path / "t", config=FULL).record.config
    assert (kept["betas"], kept["net"]["widths"], kept["data"]) == ([0.0, 0.99], [1, 2, 3], "/data")
    assert Run.from_dict(kept) == FULL


def test_small_numbers_stay_numbers_in_a_file_written_by_hand(tmp_path):
    (tmp_path / "c.yaml").write_text("name: a\nlr: 1e-4\n")
    assert Run.load(tmp_path / "c.yaml").lr == 1e-4


def test_texts_that_look_like_numbers_stay_texts_and_yaml_itself_is_left_alone(tmp_path):
    values = {"1e-3": "1e-3", "small": 1e-3, "list": ["1E5", "+1e3", "1.e2", "yes", "12:30:45"]}
    write_yaml(tmp_path / "c.yaml", values)
    assert read_yaml(tmp_path / "c.yaml") == values
    assert yaml.safe_load("a: 1e-3") == {"a": "1e-3"}


@pytest.mark.parametrize("value", [{"name": "\ud800"}, {"\ud800": 1}, {"name": ["\ud800"]}])
def test_text_that_no_file_holds_is_refused_before_there_is_a_folder(tmp_path, value):
    with pytest.raises(ValueError, match="must be text that UTF-8 can hold"):
        Trial(tmp_path / "t", config=value)
    assert not (tmp_path / "t").exists()


def test_defaults_fill_what_is_absent():
    assert Run.from_dict({"name": "b"}) == Run("b")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"name": "a", "lr": "fast"}, TypeError, "lr must be a float, got 'fast'"),
        ({"name": "a", "lr": True}, TypeError, "lr must be a float, got True"),
        ({"name": 3}, TypeError, "name must be a str, got 3"),
        ({"name": "a", "net": {"dim": 1.5}}, TypeError, r"net.dim must be an int, got 1.5"),
        ({"name": "a", "net": {"dims": 1}}, ValueError, r"net.dims is not a field of Net: dim, norm, widths"),
        ({"name": "a", "net": {"norm": "rms"}}, TypeError, r"net.norm must be .*, got 'rms'"),
        ({"name": "a", "net": 3}, TypeError, "net must be a mapping of fields, got 3"),
        ({"name": "a", "net": {"widths": [1, "x"]}}, TypeError, r"net.widths\[1\] must be an int, got 'x'"),
        ({"name": "a", "betas": [0.9]}, TypeError, r"betas must have 2 items, got 1: \[0.9\]"),
        ({"name": "a", "mode": "SLOW"}, TypeError, "mode must be one of FAST, EXACT, got 'SLOW'"),
        ({"name": "a", "weights": {"l1": "x"}}, TypeError, r"weights.l1 must be a float, got 'x'"),
        ({}, TypeError, "name is missing: Run has no default for it"),
        ({"name": "a", "lrr": 1}, ValueError, "lrr is not a field of Run: name, lr"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(values, error, message):
    with pytest.raises(error, match=message):
        Run.from_dict(values)


def test_overrides_reach_into_parts_and_leave_the_original():
    changed = FULL.override("net.dim=8", "net.norm=null", "lr=1e-3", "betas=[0.5, 0.9]")
    assert (changed.net.dim, changed.net.norm, changed.lr, changed.betas) == (8, None, 1e-3, (0.5, 0.9))
    assert FULL.net.dim == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "an override must read name=value, got 'lr'"),
        ("nett.dim=3", "nett is not a part of Run"),
        ("net.dims=3", r"net.dims is not a field of Net"),
        ("lr=[", "an override's value must be YAML"),
    ],
)
def test_a_wrong_override_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        override(FULL, text)


def test_the_difference_of_two_configs_is_dotted():
    assert diff(to_plain(FULL), to_plain(FULL.override("net.dim=8"))) == {"net.dim": (32, 8)}
    assert diff({"a": None}, {}) == {"a": (None, None)}
    assert flatten({"a": {"b": {"c": 1}}, "d": {}}) == {"a.b.c": 1, "d": {}}


def test_the_command_line_has_the_fields():
    config = Run.cli(["--name", "b", "--lr", "0.5", "--net.dim", "8", "--mode", "EXACT"])
    assert config == Run("b", 0.5, Net(8), Mode.EXACT)


def test_plain_dicts_are_configs_too(tmp_path):
    write_yaml(tmp_path / "c.yaml", {"a": {"b": [1, 2.5, None, "x"]}})
    assert read_yaml(tmp_path / "c.yaml") == {"a": {"b": [1, 2.5, None, "x"]}}


def test_what_yaml_has_no_form_for_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"config must hold plain values .* got function"):
        write_yaml(tmp_path / "c.yaml", {"f": lambda: 0})
    with pytest.raises(TypeError, match="config class must be a dataclass, got int"):
        from_plain(int, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 1\ndim: 2\nlr: 3\n", "c.yaml is not valid YAML: the key 'lr' stands twice, in lines 1 and 3"),
        ("a:\n- {b: 1,\n   'b': 1}\n", "the key 'b' stands twice, in lines 2 and 3"),
        ("1: a\n0x1: b\n", "the key 1 stands twice, in lines 1 and 2"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"{said}$"):
        read_yaml(tmp_path / "c.yaml")
    with pytest.raises(
        ValueError, match=r"value must be YAML, got '\{a: 1, a: 2\}': the key 'a' stands twice, in line 1"
    ):
        parse_yaml("{a: 1, a: 2}")


def test_a_key_may_stand_beside_the_mapping_that_it_is_merged_with(tmp_path):
    text = "base: &base {lr: 1, dim: 2}\nx:\n  a: &a {<<: *base, lr: 3}\ny: {<<: *a, dim: 4}\nz: [*a, *a]\n"
    (tmp_path / "c.yaml").write_text(text)
    a = {"lr": 3, "dim": 2}
    assert read_yaml(tmp_path / "c.yaml") == {
        "base": {"lr": 1, "dim": 2}, "x": {"a": a}, "y": {"lr": 3, "dim": 4}, "z": [a, a]
    }  # fmt: skip


@pytest.mark.parametrize("text", ["- 1\n", "a: [", "!!python/object/apply:os.system ['true']"])
def test_a_file_that_is_no_mapping_or_would_run_code_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"must hold a mapping|is not valid YAML"):
        read_yaml(tmp_path / "c.yaml")

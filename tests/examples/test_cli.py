import re
import runpy
import shlex
import subprocess
import sys
import types
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from ai import examples
from ai.examples import cli
from ai.lab.files.folder import LabPathError


@dataclass(frozen=True)
class Config:
    steps: int = 100
    device: str = "cpu"


@dataclass(frozen=True)
class Recorded:
    steps: int = 100
    trial: str = "thing"


PRESETS = {"tiny": Config(2), "laptop": Config(), "paper": Config(300_000, "cuda")}
LINES = {"tiny": "a test", "laptop": "minutes", "paper": "as published"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Config()),
        (["--steps", "7"], Config(7)),
        (["tiny"], Config(2)),
        (["paper", "--device", "cpu"], Config(300_000, "cpu")),
    ],
)
def test_a_preset_is_chosen_by_name_and_its_fields_by_options(monkeypatch, arguments, expected):
    monkeypatch.setattr(sys, "argv", ["ai-examples", *arguments])
    assert cli.read_config(PRESETS, LINES, None) == expected


def test_each_preset_has_a_trial_of_its_own(monkeypatch):
    presets = {name: Recorded() for name in PRESETS}
    chosen = []
    for arguments in ([], ["laptop"], ["tiny"], ["paper", "--steps", "7"], ["tiny", "--trial", "mine"]):
        monkeypatch.setattr(sys, "argv", ["ai-examples", *arguments])
        chosen.append(cli.read_config(presets, LINES, None).trial)
    assert chosen == ["thing", "thing", "thing-tiny", "thing-paper", "mine"]


def test_help_lists_the_presets_with_their_lines(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ai-examples vit", "--help"])
    with pytest.raises(SystemExit) as exit_:
        cli.read_config(PRESETS, LINES, "Trains a thing.")
    shown = capsys.readouterr().out
    assert exit_.value.code == 0
    assert all(word in shown for word in ("Trains a thing.", *PRESETS, *LINES.values()))


def test_descriptions_of_other_presets_are_refused():
    with pytest.raises(
        ValueError, match=r"descriptions must have the keys of presets, \['laptop', .*\], got \['big'\]"
    ):
        cli.read_config(PRESETS, {"big": "?"}, None)


def test_every_example_is_listed_with_a_description():
    found = cli.examples_with_descriptions()
    assert {"mnist", "autoencoder", "vit", "gpt"} <= found.keys() <= set(examples.__all__)
    assert all(line.endswith(".") and len(line) < 120 for line in found.values()), found


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['ai-examples']; from ai.examples.cli import main; main(); "
        "assert not {'torch', 'tyro', 'numpy'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True).stdout
    assert "  mnist " in shown


def test_an_example_runs_with_the_arguments_after_its_name(monkeypatch):
    from ai.examples.mnist import main as mnist

    seen = []
    monkeypatch.setattr(mnist, "main", lambda: seen.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["ai-examples", "mnist", "--steps", "3"])
    cli.main()
    assert seen == [["ai-examples mnist", "--steps", "3"]]


def test_a_wrong_root_of_the_lab_is_told_in_one_line(monkeypatch, capsys, tmp_path):
    from ai.examples.mnist import main as mnist
    from ai.lab.files.folder import lab_root

    (tmp_path / "notes.txt").write_text("")
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path / "notes.txt"))
    monkeypatch.setattr(mnist, "main", lab_root)
    monkeypatch.setattr(sys, "argv", ["ai-examples", "mnist"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith(f"ai-examples: AI_LAB_PATH ({tmp_path / 'notes.txt'}) must be a folder")


@pytest.mark.parametrize(("error", "status"), [(LabPathError("AI_LAB_PATH (x) must be"), 2), (OSError(28, "full"), 1)])
def test_every_door_tells_a_failing_file_in_one_sentence(error, status, monkeypatch, capsys):
    def fails():
        raise error

    doors = sorted(Path(cli.__file__).parent.glob("*/__main__.py"))
    assert len(doors) > 10
    for door in doors:
        name = door.parent.name
        monkeypatch.setitem(sys.modules, f"ai.examples.{name}.main", types.SimpleNamespace(main=fails))
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(door), run_name="__main__")
        assert exit_.value.code == status
        assert capsys.readouterr().err == f"{name}: {error}\n"


def test_help_by_the_modules_own_door_names_the_command_and_no_path(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/checkout/mnist/__main__.py", "--help"])
    with cli.told("mnist"):
        assert sys.argv[0] == "python -m ai.examples.mnist"
    monkeypatch.setattr(sys, "argv", ["ai-examples mnist"])
    with cli.told("ai-examples"):
        assert sys.argv[0] == "ai-examples mnist"


def test_an_unknown_example_exits_with_the_nearest_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ai-examples", "minst"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert "there is no example 'minst'; did you mean 'mnist'? known: " in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.examples_with_descriptions())
def test_an_example_says_what_to_type_and_has_its_line_in_the_guide(name):
    root = Path(__file__).parents[2]
    readme = root / "examples" / "src" / "ai" / "examples" / name / "README.md"
    assert f"\nai-examples {name}" in readme.read_text(encoding="utf-8")
    assert f"\n| `{name}` |" in (root / "docs" / "guide" / "examples.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["alphazero", "muzero"])
def test_a_command_that_is_told_to_be_typed_is_understood(name, monkeypatch):
    main = import_module(f"ai.examples.{name}.main")
    readme = Path(main.__file__).with_name("README.md").read_text(encoding="utf-8")
    commands = re.findall(rf"^ai-examples {name}(.*)$", readme, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["main", *shlex.split(command, comments=True)])
        config = cli.read_config(main.PRESETS, main.DESCRIPTIONS, None)
        assert config.game in command
        assert config.resume == ("--resume" in command)

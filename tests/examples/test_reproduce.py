import inspect
import json
import sys
from pathlib import Path

import pytest

from ai.examples import reproduce
from ai.examples.reproduce import RESULTS, Result


def stand_in(*, seed: int = 0, steps: int = 10) -> dict[str, float]:
    """Measures nothing."""
    return {"error": steps / 1000 + seed}


@pytest.fixture
def registered(monkeypatch, tmp_path):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path))
    monkeypatch.setitem(RESULTS, "stand-in", Result(f"{__name__}:stand_in", "A stand-in for a result."))
    return tmp_path


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_a_function_with_a_seed_and_keyword_options(name):
    parameters = inspect.signature(RESULTS[name].load()).parameters
    assert "seed" in parameters
    assert all(p.default is not p.empty for p in parameters.values()), "a result runs without options"


@pytest.mark.parametrize("flag", [[], ["--list"]])
def test_the_list_shows_names_with_their_lines(registered, monkeypatch, capsys, flag):
    monkeypatch.setattr(sys, "argv", ["reproduce", *flag])
    reproduce.main()
    shown = capsys.readouterr().out
    assert "A stand-in for a result." in shown
    assert all(name in shown for name in RESULTS)


def test_a_result_runs_with_its_options_and_is_recorded(registered, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce", "stand-in", "--steps", "20", "--seed", "3"])
    reproduce.main()
    record = json.loads((registered / "reproduce" / "stand-in.json").read_text())
    assert record["numbers"] == {"error": 3.02}
    assert record["command"] == "python -m ai.examples.reproduce stand-in --steps 20 --seed 3"
    assert {"commit", "torch", "seconds", "threads"} <= record.keys()
    assert json.loads(capsys.readouterr().out) == record


def test_an_unknown_result_exits_with_the_nearest_name(registered, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce", "standin"])
    with pytest.raises(SystemExit) as exit_:
        reproduce.main()
    assert exit_.value.code == 2
    assert "there is no result 'standin'; did you mean 'stand-in'?" in capsys.readouterr().err


def test_a_wrong_root_is_told_in_one_sentence_before_anything_runs(registered, monkeypatch, capsys):
    file = registered / "notes.txt"
    file.write_text("")
    monkeypatch.setenv("AI_LAB_PATH", str(file))
    monkeypatch.setattr(sys, "argv", ["reproduce", "stand-in"])
    with pytest.raises(SystemExit) as exit_:
        reproduce.main()
    assert exit_.value.code == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"reproduce: AI_LAB_PATH ({file}) must be a folder, and {file} is none\n")


def test_a_root_that_cannot_be_made_is_told_before_anything_runs(registered, monkeypatch, capsys):
    def refuses(path, *how, **more):
        raise PermissionError(13, "Permission denied", str(path))

    root = registered / "there" / "not"
    monkeypatch.setenv("AI_LAB_PATH", str(root))
    monkeypatch.setattr(Path, "mkdir", refuses)
    monkeypatch.setattr(sys, "argv", ["reproduce", "stand-in"])
    with pytest.raises(SystemExit) as exit_:
        reproduce.main()
    assert exit_.value.code == 2
    told = f"AI_LAB_PATH ({root}) must be a folder in which 'reproduce' can be made: Permission denied"
    assert capsys.readouterr() == ("", f"reproduce: {told}: {root / 'reproduce'}\n")

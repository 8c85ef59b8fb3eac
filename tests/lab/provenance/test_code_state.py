import json
import subprocess
import sys

import pytest

from ai.lab import Experiment, Record, Trial
from ai.lab.cli import main
from ai.lab.provenance.code_state import keep_once
from ai.lab.provenance.masking import mask

HOW = {"system_interval_s": None, "capture": False}
SCRIPT = """
import sys
from ai.lab import Trial
import net

with Trial(sys.argv[1], system_interval_s=None, capture=False) as trial:
    trial.log(0, {"dim": net.DIM})
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "repo"
    (folder / "exp").mkdir(parents=True)
    for name, value in {"NAME": "a", "EMAIL": "a@b"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    (folder / "exp" / "net.py").write_bytes(b"DIM = 4\r\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (folder / "exp" / "net.py").write_bytes(b"DIM = 8\r\n")
    (folder / "exp" / "train.py").write_text(SCRIPT)  # in no commit
    return folder


def run(folder, trial) -> None:
    command = [sys.executable, "train.py", str(trial), "--token", "abc"]
    subprocess.run(command, cwd=folder, check=True, timeout=300)


def test_a_trial_is_reproduced_from_its_commit_changes_and_script(repository, tmp_path, capsys):
    run(repository / "exp", tmp_path / "t")
    record = Record(tmp_path / "t")
    session = record.meta["sessions"][0]
    assert "+DIM = 8" in session["git"]["diff"]
    assert session["packages"]["torch"]
    assert session["argv"][-2:] == ["--token", "***"]
    (repository / "exp" / "net.py").write_text("DIM = 99\n")
    (repository / "exp" / "train.py").unlink()
    assert main(["resume", str(record.path)]) == 1
    assert "secrets of the command were not recorded" in capsys.readouterr().err
    assert main(["reproduce", str(record.path)]) == 0
    folder = tmp_path / "repo-t" / "exp"
    assert capsys.readouterr().out.startswith(f"cd {folder} && {sys.executable} train.py")
    assert (folder / "net.py").read_bytes() == b"DIM = 8\r\n"
    run(folder, tmp_path / "again")
    assert Record(tmp_path / "again").last()["dim"] == 8
    assert main(["reproduce", str(record.path)]) == 1
    assert "is there already; choose another with --to" in capsys.readouterr().err
    (script,) = (record.path / "code").glob("*-train.py")
    with script.open("a") as file:  # also where this trial shares it with another, whose editor did this
        file.write("raise SystemExit\n")
    assert main(["reproduce", str(record.path), "--to", str(tmp_path / "third")]) == 1
    assert f"{script} was edited since it was recorded" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_changes_come_back_to_the_byte_whatever_they_hold_and_however_this_user_looks_at_diffs(
    repository, tmp_path, capsys
):
    latin, image, empty = repository / "latin.txt", repository / "image.bin", repository / "empty"
    latin.write_bytes(b"caf\xe9 = 1\n")
    image.write_bytes(bytes(range(256)))
    for command in (["add", "latin.txt", "image.bin"], ["commit", "-q", "-m", "second"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    for name in ("relative", "noprefix", "mnemonicPrefix"):
        subprocess.run(["git", "config", f"diff.{name}", "true"], cwd=repository, check=True)
    subprocess.run(["git", "config", "diff.context", "0"], cwd=repository, check=True)
    latin.write_bytes(b"caf\xe9 = 2\n\xff")
    image.write_bytes(bytes(range(256))[::-1])
    empty.mkdir()
    (repository / "notes.txt").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(empty)  # in it nothing changed
        with Trial(tmp_path / "t", **HOW) as trial:
            pass
    assert main(["reproduce", str(trial.path), "--to", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().err == "ai-lab: 2 files that no commit has are not there: exp/train.py, notes.txt\n"
    assert (tmp_path / "again" / "empty").is_dir()
    for name in ("latin.txt", "image.bin", "exp/net.py"):
        assert (tmp_path / "again" / name).read_bytes() == (repository / name).read_bytes()
    changes = trial.record.inside(trial.record.meta["sessions"][0]["git"]["diff_file"])
    changes.unlink()
    changes.write_text("diff --git a/none b/none\n--- a/none\n+++ b/none\n@@ -1 +1 @@\n-a\n+b\n")
    assert main(["reproduce", str(trial.path), "--to", str(tmp_path / "third")]) == 1
    assert not (tmp_path / "third").exists()  # nothing half made stays


def test_a_script_that_is_no_script_by_its_length_is_not_kept(tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None, raising=False)
    monkeypatch.setattr("ai.lab.provenance.code_state.SCRIPT_LIMIT_BYTES", 10)
    for text, kept in (("x = 1 + 23", True), ("x = 1 + 234", False)):
        script.write_text(text)
        with Trial(tmp_path / str(kept), **HOW) as trial:
            trial.log(0, {"loss": 1.0})
        name = trial.record.meta["sessions"][0].get("script_file")
        assert (name is not None) == kept
        assert [path.read_text() for path in (trial.path / "code").glob("*-train.py")] == [text] * kept


def test_what_trials_of_an_experiment_share_is_on_disk_once_and_each_is_whole(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random")
    experiment.run(3, lambda trial: trial.hp.lin("x", 0, 1), progress=False)
    (store,) = (tmp_path / "e").glob(".ai-lab-store")
    (packages,) = store.glob("*-packages.json")
    assert packages.stat().st_nlink == 4
    for row in experiment.trials():
        assert len((row.path / "meta.json").read_bytes()) < 5000
    moved = tmp_path / "moved"
    experiment.trials()[0].path.rename(moved)
    Experiment(tmp_path / "e", clean=True)
    assert Record(moved).meta["sessions"][0]["packages"]["torch"]


def test_what_trials_of_a_plain_folder_share_is_on_disk_once_and_nothing_is_added_to_it(tmp_path):
    trials = [tmp_path / "mine" / name for name in "abcd"]
    for path in trials:
        with Trial(path, **HOW) as trial:
            trial.log(0, {"loss": 1.0})
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == list("abcd")
    files = [file for path in trials for file in (path / "code").iterdir()]
    assert {file.stat().st_nlink for file in files} == {4}
    names = {keep_once(path, "x.txt", b"one") for path in trials}
    (damaged := trials[3] / names.pop()).unlink()
    damaged.write_bytes(b"two")  # of the same size: is not taken over
    assert keep_once(trials[3], "x.txt", b"one") == str(damaged.relative_to(trials[3]))
    assert damaged.read_bytes() == b"one"  # a run that goes on mends it
    assert Record(path).meta["sessions"][0]["packages"]["torch"]
    for trial in trials[1:]:  # of a tool that moves files into a cache: its links lead elsewhere from another folder
        (file := trial / keep_once(trial, "y.txt", b"one")).replace(tmp_path / "cache")
        file.symlink_to("../../../cache")
    path = trials[0].rename(tmp_path / "moved")
    with Trial(trials[0], **HOW):
        pass
    linked = trials[0] / keep_once(trials[0], "y.txt", b"one")
    assert not linked.is_symlink()
    assert linked.read_bytes() == b"one"
    assert (trials[0] / keep_once(trials[0], "x.txt", b"one")).read_bytes() == b"one"


def test_a_file_that_is_there_is_not_written_again_and_disks_without_links_have_their_own(tmp_path, monkeypatch):
    with Trial(tmp_path / "t", **HOW) as trial:
        pass
    names = {keep_once(trial.path, "a.txt", b"one"), keep_once(trial.path, "a.txt", b"one")}
    assert len(names) == 1
    assert trial.record.inside(names.pop()).read_bytes() == b"one"
    experiment = Experiment(tmp_path / "e")
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    path = Trial(experiment.trial_path(0), **HOW).path
    assert (path / keep_once(path, "b.txt", b"two")).read_bytes() == b"two"


def test_a_name_in_the_metadata_that_leads_out_is_not_read(tmp_path):
    with Trial(tmp_path / "t", **HOW) as trial:
        pass
    (tmp_path / "secret.json").write_text("{}")
    meta = json.loads((trial.path / "meta.json").read_bytes())
    meta["sessions"][0]["packages_file"] = "../secret.json"
    (trial.path / "meta.json").write_text(json.dumps(meta))
    assert "packages" not in trial.record.meta["sessions"][0]
    with pytest.raises(ValueError, match="leads out of"):
        trial.record.inside("/etc/passwd")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--api-key", "abc"], ["--api-key", "***"]),
        (["--wandb_api_key=abc"], ["--wandb_api_key=***"]),
        (["db.password=a=b"], ["db.password=***"]),
        (["--token", "--verbose"], ["--token", "--verbose"]),
        (["--start-token", "5", "--tokenizer", "gpt2", "--max_tokens", "9"],) * 2,
        (["hf_abcdefghijklmnopqrstuvwx"], ["***"]),
        (["--password", "1234", "--api-key=5678"], ["--password", "***", "--api-key=***"]),
        (["-H", "Authorization: Bearer a.b-c"], ["-H", "Authorization: Bearer ***"]),
        (["--url", "https://me:pw@host/x"], ["--url", "https://***@host/x"]),
    ],
)
def test_secrets_in_the_command_line_are_masked(given, kept):
    assert mask(given) == kept

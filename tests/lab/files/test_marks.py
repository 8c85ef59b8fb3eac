import threading

import pytest

from ai.lab import Experiment, Study, Trial
from ai.lab.cli import main
from ai.lab.files.alias import point_alias
from ai.lab.files.marks import MARKS, change_marks, load_marks
from ai.lab.files.removal import remove_unowned
from ai.lab.page.catalog import Catalog

HOW = {"system_interval_s": None, "capture": False}


def record(path) -> Trial:
    with Trial(path, **HOW) as trial:
        trial.log(0, {"loss": 1.0})
    return trial


def test_a_running_trial_is_tagged_and_the_page_is_told(tmp_path, capsys):
    trial, catalog = Trial(tmp_path / "t", **HOW), Catalog(tmp_path)
    with trial:
        trial.log(0, {"loss": 1.0})
        version = catalog.changes(-1)["version"]
        assert trial.record.tag("paper", "pinned") == ["paper", "pinned"]
        (row,) = catalog.changes(version)["trials"]
        assert (row["tags"], row["note"]) == (["paper", "pinned"], "")
    assert main(["tag", str(trial.path), "--remove", "pinned", "--add", "b", "--note", "the baseline"]) == 0
    assert capsys.readouterr().out == "t: paper b; the baseline\n"
    (row,) = catalog.rows()
    assert (row["tags"], row["note"]) == (["paper", "b"], "the baseline")
    assert trial.record.tags == ["paper", "b"]
    remove_unowned(trial.path)
    assert list(tmp_path.iterdir()) == []


def test_tags_are_single_words_and_damaged_marks_hide_nothing(tmp_path):
    trial = record(tmp_path / "t")
    with pytest.raises(ValueError, match="a tag must be one word, got 'a b'"):
        trial.record.tag("a b")
    with pytest.raises(TypeError, match="remove must be a list of tags, got 'good'"):
        trial.record.tag(remove="good")
    with pytest.raises(ValueError, match="a tag must be one word, got 3"):
        trial.record.tag(3)
    (trial.path / MARKS).write_text('{"tags": 3, "note": "kept"}')
    assert load_marks(trial.path)[0] == {"tags": [], "note": "kept"}
    (row,) = Catalog(tmp_path).rows()
    assert row["problems"] == ["marks.json is damaged: tags cannot be 3"]


def test_of_many_who_tag_at_once_every_tag_is_kept(tmp_path):
    trial = record(tmp_path / "t")
    threads = [threading.Thread(target=change_marks, args=(trial.path,), kwargs={"add": [f"t{i}"]}) for i in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(trial.record.tags) == [f"t{i}" for i in range(6)]


def test_the_best_of_a_search_is_found_by_its_alias(tmp_path, capsys):
    experiment = Experiment(tmp_path / "e", "max", search={"x": [1, 3, 2]})
    experiment.run(3, lambda trial: float(trial.hp.int("x", 1, 3)), progress=False)
    assert main(["show", f"{experiment.path}@best"]) == 0
    shown = capsys.readouterr().out
    assert experiment.best_trial.id in shown
    assert Trial(experiment.path / "@best", **HOW).id == experiment.best_trial.id
    (tmp_path / "e").rename(tmp_path / "moved")
    assert Trial(tmp_path / "moved" / "@best", **HOW).record.meta["score"] == 3
    assert len(Catalog(tmp_path).rows()) == 3  # the alias is no trial of its own
    remove_unowned(tmp_path / "moved")
    assert list(tmp_path.iterdir()) == []


def test_a_study_names_a_trial_and_may_change_its_mind(tmp_path):
    study = Study(tmp_path / "s")
    for name in ("a", "b"):
        record(study.path / name)
    study.alias("best", "a")
    assert study.trial("@best", **HOW).id == study.trial("a", **HOW).id
    study.alias("@best", "b")
    assert study.trial("@best", **HOW).id == study.trial("b", **HOW).id
    assert list(study.records()) == ["a", "b"]
    with pytest.raises(ValueError, match=r"trial must be one of .* \(a, b\), got 'c'"):
        study.alias("best", "c")
    with pytest.raises(ValueError, match=r"an alias must be letters, digits and any of -_\., got '\.\./x'"):
        study.alias("../x", "a")
    with pytest.raises(ValueError, match="must lead to a trial inside it"):
        point_alias(study.path, "best", tmp_path / "elsewhere")

"""Models as folders and on the Hub, whose client is pointed at a folder."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

import ai.model as m


class Perceptron(m.Model):
    def __init__(self, dim, depth=1, *, sizes=()):
        super().__init__(m.seq(m.repeat(depth, m.fc(dim, dim, actv="relu")), *(m.fc(dim, size) for size in sizes)))


class Other(Perceptron):
    pass


def made():
    return Perceptron(4, depth=2, sizes=(3,)).init(seed=0)


def test_a_folder_gives_the_model_back(tmp_path):
    made().save_pretrained(tmp_path / "new" / "folder")
    again = Perceptron.from_pretrained(tmp_path / "new" / "folder")
    torch.testing.assert_close(again.state_dict(), made().state_dict(), rtol=0, atol=0)
    assert json.loads((tmp_path / "new" / "folder" / "config.json").read_text())["args"] == [4]


class Hub:
    """What huggingface_hub offers of repositories, kept in a folder."""

    def __init__(self, root):
        self.root = root

    def create_repo(self, repo, *, private, exist_ok):
        assert exist_ok
        (self.root / repo).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo)

    def create_branch(self, repo, *, branch, exist_ok):
        assert exist_ok

    def upload_folder(self, *, repo_id, folder_path, commit_message, revision):
        shutil.copytree(folder_path, self.root / repo_id / (revision or "main"))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/{commit_message}")

    def snapshot_download(self, repo, *, revision, token, allow_patterns):
        assert set(allow_patterns) == {file.name for file in (self.root / repo / (revision or "main")).iterdir()}
        return str(self.root / repo / (revision or "main"))


@pytest.mark.parametrize("revision", [None, "tuned"])
def test_what_is_pushed_is_what_comes_back(tmp_path, monkeypatch, revision):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    assert made().push_to_hub("me/net", message="first", revision=revision) == "https://hub/me/net/commit/first"
    again = Perceptron.from_pretrained("me/net", revision=revision)
    torch.testing.assert_close(again.state_dict(), made().state_dict(), rtol=0, atol=0)


def test_what_cannot_be_made_again_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"Model must be made with numbers, strings, lists and dicts alone"):
        m.Model(m.fc(2, 2)).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"must hold a model that was saved by save_pretrained: no config.json"):
        Perceptron.from_pretrained(tmp_path)
    made().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must hold a Other, it holds a Perceptron"):
        Other.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"revision \('main'\) must be None for a folder"):
        Perceptron.from_pretrained(tmp_path, revision="main")
    (tmp_path / "config.json").write_text('{"class": "Perceptron", "args": 4}')
    with pytest.raises(ValueError, match=r"must hold a config.json that save_pretrained wrote"):
        Perceptron.from_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'ai-model\[hub\]'"):
        Perceptron.from_pretrained("me/net")

import re
import tomllib
from pathlib import Path

import pytest

import ai

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [*sorted(ROOT.glob("packages/*")), ROOT / "examples"]
OURS = {"ai", "ai-model", "ai-data", "ai-train", "ai-infer", "ai-game", "ai-lab", "ai-examples"}


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def test_all_eight_distributions_are_here():
    assert {project(folder)["name"] for folder in FOLDERS} == OURS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_versions_are_in_lockstep_and_siblings_pinned(folder):
    meta = project(folder)
    assert meta["version"] == ai.__version__
    assert "Private :: Do Not Upload" in meta["classifiers"]
    needs = [
        *meta["dependencies"],
        *(need for extra in meta.get("optional-dependencies", {}).values() for need in extra),
    ]
    for need in needs:
        name = re.match(r"[\w.-]+", need)[0]
        if name in OURS:
            assert need.endswith(f"=={ai.__version__}"), need


def test_the_version_is_one_that_no_public_index_can_hold():
    assert "+" in ai.__version__


def test_ci_names_the_version_of_the_wheels():
    assert set(re.findall(r"==(\d[\w.+]*ws)", (ROOT / ".ci/run").read_text())) == {ai.__version__}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_only_the_umbrella_ships_the_namespace_module(folder):
    assert (folder / "src/ai/__init__.py").exists() == (folder.name == "ai")
    assert list(folder.glob("src/ai/**/py.typed"))


def test_all_of_the_umbrella_is_every_distribution():
    extras = project(ROOT / "packages/ai")["optional-dependencies"]
    assert {re.match(r"[\w-]+", need)[0] for need in extras["all"]} == OURS - {"ai"}
    assert set(extras) == {name.removeprefix("ai-") for name in OURS - {"ai"}} | {"all", "util"}

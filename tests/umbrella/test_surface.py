import multiprocessing
import pickle
import subprocess
import sys

import pytest

import ai

# Blocks one distribution as if it were not installed, in a fresh interpreter.
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import ai
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", sorted(ai.__all__))
def test_every_public_name_resolves(name):
    assert getattr(ai, name) is not None
    assert name in dir(ai)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ai' has no attribute 'nope'"):
        ai.nope  # noqa: B018


def test_import_loads_nothing_but_a_little_of_the_standard_library():
    code = "import sys; before = set(sys.modules); import ai; print(*sorted(set(sys.modules) - before))"
    loaded = {name.partition(".")[0] for name in run(code).split()}
    assert loaded <= sys.stdlib_module_names | {"ai"}
    assert not loaded & {"asyncio", "multiprocessing", "dataclasses", "inspect", "unittest"}


def test_a_name_resolves_to_the_same_object_as_the_import():
    from ai.train import Trainer

    assert ai.Trainer is Trainer
    assert pickle.loads(pickle.dumps(ai.Trainer)) is Trainer


@pytest.mark.parametrize(
    ("name", "module", "distribution"),
    [("data", "ai.data", "ai-data"), ("Trial", "ai.lab", "ai-lab"), ("opt", "ai.train", "ai-train")],
)
def test_a_missing_distribution_is_named(name, module, distribution):
    code = WITHOUT.format(module=module) + f"try: ai.{name}\nexcept AttributeError as error: print(error)"
    message = run(code)
    assert message.startswith(f"ai.{name} needs the distribution '{distribution}', which is not installed")
    assert "checkout" in message
    assert "--find-links" in message


def test_the_rest_works_without_ai_data():
    code = WITHOUT.format(module="ai.data") + "print(ai.model.Model.__name__, hasattr(ai, 'data'))"
    assert run(code) == "Model False"


def test_a_failure_inside_a_part_is_not_hidden():
    code = (
        WITHOUT.format(module="ai.model.model") + "try: ai.model.Model\nexcept ImportError as error: print(error.name)"
    )
    assert run(code) == "ai.model.model"


def test_a_spawned_process_sees_the_same_namespace():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(eval, ("__import__('ai').model.__name__",)) == "ai.model"

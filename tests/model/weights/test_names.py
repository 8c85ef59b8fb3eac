import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ai.model as m

endings = pytest.mark.parametrize("ending", ["pt", "safetensors"])


class Named(nn.Module):
    """Has a weight beside a child called `module`, as wrappers call what they wrap."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 5))
        self.module = nn.Linear(9, 1)


@endings
def test_names_that_look_like_a_wrappers_are_kept_apart(ending, tmp_path):
    model, other = Named(), Named()
    m.save_state(model.state_dict(), tmp_path / f"x.{ending}")
    assert m.load_into(other, m.load_state(tmp_path / f"x.{ending}")) == []
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self._orig_mod = nn.Linear(2, 2)
        self.lin = nn.Linear(2, 2)


def test_a_child_called_like_compiled_code_loads_by_its_name():
    model, other = Wrapped(), Wrapped()
    m.load_into(other, model.state_dict())
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "data parallel"])
def test_files_pass_between_wrapped_and_plain_models(wrap):
    model = m.Model(m.seq(m.fc(3, 4), m.fc(4, 2)))
    wrapped, plain = wrap(m.Model(m.seq(m.fc(3, 4), m.fc(4, 2)))), m.Model(m.seq(m.fc(3, 4), m.fc(4, 2)))
    m.load_into(wrapped, model.state_dict())
    m.load_into(plain, wrapped.state_dict())
    torch.testing.assert_close(plain.state_dict(), model.state_dict(), rtol=0, atol=0)
    both = nn.DataParallel(torch.compile(m.Model(m.seq(m.fc(3, 4), m.fc(4, 2)))))
    m.load_into(both, model.state_dict())
    m.load_into(plain.init(seed=0), both.state_dict())
    torch.testing.assert_close(plain.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_model_with_one_compiled_child_takes_plain_names():
    model, plain = m.Model(m.seq(m.fc(3, 4), m.fc(4, 2))), m.Model(m.seq(m.fc(3, 4), m.fc(4, 2)))
    model.net[1] = torch.compile(model.net[1])
    assert "net.1._orig_mod.weight" in model.state_dict()
    m.load_into(model, plain.state_dict())
    m.load_into(plain.init(seed=1), model.state_dict())
    torch.testing.assert_close(plain.net[1].weight, model.net[1]._orig_mod.weight, rtol=0, atol=0)


@endings
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated")
def test_files_of_the_old_weight_norm_load_through_the_modules_own_hooks(ending, tmp_path):
    old = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 2)))
    new = m.Model(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))))
    m.save_state({f"net.{name}": value for name, value in old.state_dict().items()}, tmp_path / f"x.{ending}")
    assert "net.0.weight_g" in m.load_state(tmp_path / f"x.{ending}")
    new.init(tmp_path / f"x.{ending}")
    x = torch.randn(4, 3)
    torch.testing.assert_close(new(x), old(x), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated")
def test_what_the_hooks_translate_is_compared_too():
    new = m.Model(parametrizations.weight_norm(nn.Linear(3, 2)))
    state = {f"net.{k}": v for k, v in torch.nn.utils.weight_norm(nn.Linear(4, 2)).state_dict().items()}
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(ValueError, match=r"misshapen: .*original1 \(model \(2, 3\), file \(2, 4\)\)"):
        m.load_into(new, state)
    del state["net.weight_g"]
    with pytest.raises(ValueError, match="missing"):
        m.load_into(new, state)
    torch.testing.assert_close(new.state_dict(), before, rtol=0, atol=0)


class Counting(nn.Module):
    """Keeps something beside its tensors."""

    def __init__(self, seen=0):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(2)), seen

    def get_extra_state(self):
        return {"seen": self.seen, "names": ["a"]}

    def set_extra_state(self, state):
        self.seen = state["seen"]


@endings
def test_what_a_module_keeps_beside_its_tensors_is_saved(ending, tmp_path):
    m.Model(Counting(7)).save(tmp_path / f"x.{ending}")
    loaded = m.Model(Counting()).init(tmp_path / f"x.{ending}")
    assert loaded.net.seen == 7
    with pytest.raises(ValueError, match=r"missing: net\._extra_state"):
        m.load_into(m.Model(Counting()), {"net.weight": torch.ones(2)})


class Hostile(nn.Module):
    def get_extra_state(self):
        return pytest.raises  # a function: a pickle would import it

    def set_extra_state(self, state):
        raise AssertionError("not to be reached")


@endings
def test_extra_state_that_would_run_code_is_refused(ending, tmp_path):
    m.Model(Hostile()).save(tmp_path / f"x.{ending}")
    with pytest.raises(ValueError, match="nothing that runs code"):
        m.Model(Hostile()).init(tmp_path / f"x.{ending}")

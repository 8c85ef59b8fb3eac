"""An error out of a model names the layer and what it was given; torch's own words and type stay."""

import numpy as np
import pytest
import torch
from torch import nn

import ai.model as m


def _note(model, *given):
    with pytest.raises(Exception) as caught:  # noqa: PT011  (of whatever type torch has for it)
        model(*given)
    return caught.type, getattr(caught.value, "__notes__", [])


def _model():
    return m.Model(m.seq(m.flatten(), m.fc(6, 4, "relu"), m.fc(4, 2)))


def test_the_layer_of_another_width_is_named_with_what_it_was_given():
    kind, notes = _note(_model(), torch.zeros(3, 5))
    assert kind is RuntimeError
    assert notes == ["layer net.1 is _Linear(6, 4), and was given float32 (3, 5)"]
    kind, notes = _note(m.Model(m.seq(m.conv(3, 8))), torch.zeros(2, 1, 4, 4))
    assert len(notes) == 1
    assert notes[0].startswith("layer net.0 is ")
    assert "3, 8" in notes[0]
    assert notes[0].endswith(", and was given float32 (2, 1, 4, 4)")


def test_an_array_of_numpy_is_named_wherever_it_fails():
    said = "a NumPy array of shape (3, 6) (torch.as_tensor(x) is a tensor of it)"
    for model in (_model(), m.Model(m.fc(6, 2)), m.Model(nn.Sequential(nn.Linear(6, 2)))):
        kind, notes = _note(model, np.zeros((3, 6), np.float32))
        assert kind is TypeError
        assert len(notes) == 1
        assert notes[0].endswith(said)


def test_a_layer_in_a_model_in_a_model_has_its_whole_name_and_one_line():
    _, notes = _note(m.Model(m.seq(m.gain(2.0), _model())), torch.zeros(3, 5))
    assert notes == ["layer net.1.net.1 is _Linear(6, 4), and was given float32 (3, 5)"]


def test_an_error_of_the_model_itself_and_one_without_a_layer_are_left_alone():
    class Own(m.Model):
        def forward(self, x):
            raise ValueError("no such luck")

    assert _note(Own(), torch.zeros(1)) == (ValueError, [])
    error = ValueError("raised elsewhere")
    with pytest.raises(ValueError, match="elsewhere"):
        raise error
    assert not hasattr(error, "__notes__")


def test_a_note_of_the_users_stays():
    class Own(nn.Module):
        def forward(self, x):
            error = ValueError("odd")
            error.add_note("layer cake")
            raise error

    assert _note(m.Model(m.seq(Own())), torch.zeros(1))[1] == [
        "layer cake",
        "layer net.0 is Own(), and was given float32 (1,)",
    ]


def test_models_are_compiled_whole_and_traced_as_before():
    model, x = _model(), torch.randn(3, 6)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), model(x))
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))


def test_a_layer_that_cannot_show_itself_does_not_hide_what_failed():
    class Own(nn.Module):
        def extra_repr(self):
            return f"{self.size}"

        def forward(self, x):
            raise ValueError("odd")

    assert _note(m.Model(m.seq(Own())), torch.zeros(1)) == (
        ValueError,
        ["layer net.0 is Own(...), and was given float32 (1,)"],
    )

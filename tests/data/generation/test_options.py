"""Options of generated data: their defaults are those that the page names, and none is passed over."""

import pytest

from ai.data.generation.options import datagen_options, passes_options


def test_what_is_not_said_is_the_default():
    assert passes_options({}) == {
        "batches": 1, "gamma": 0.99, "lam": 0.95, "sequence": None, "seed": 0, "pin": None,
    }  # fmt: skip
    assert datagen_options({"n_workers": 0, "seed": 3}) == {
        "n_workers": 0, "buffer": None, "replay_ratio": None, "min_steps": None, "seed": 3, "pin": None, "engine": None,
        "stall_timeout_s": 1800,
    }  # fmt: skip


@pytest.mark.parametrize("check", [passes_options, datagen_options])
def test_an_option_that_there_is_none_of_is_refused_with_those_there_are(check):
    with pytest.raises(TypeError, match=r"there is no option 'batch'; the options are .*seed, pin"):
        check({"batch": 3})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stall_timeout_s": 0}, r"stall_timeout_s must be positive and finite, or None, got 0"),
        ({"stall_timeout_s": float("inf")}, r"stall_timeout_s must be positive and finite, or None, got inf"),
        (
            {"stall_timeout_s": 5, "n_workers": 0},
            r"n_workers \(0\) must be at least 1 with stall_timeout_s: nobody else",
        ),
    ],
)
def test_a_limit_of_silence_that_cannot_hold_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        datagen_options(wrong)

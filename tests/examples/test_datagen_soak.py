"""The soak of generated data, in short."""

import pytest

from ai.examples.datagen_soak import Numbered, reproduce


@pytest.mark.slow
def test_a_few_seconds_lose_no_batch_and_count_every_kill():
    numbers = reproduce(minutes=0.05, seed=1)
    assert numbers["kills"] >= 1
    assert 0 <= numbers["kills"] - numbers["worker_deaths"] <= 1  # the last one may not be noticed yet
    assert numbers["batches"] > 0


def test_a_torn_row_is_reported(monkeypatch):
    whole = Numbered.__next__

    def torn(self):
        return {**whole(self), "name": 0}

    monkeypatch.setattr(Numbered, "__next__", torn)
    with pytest.raises(RuntimeError, match="batch 0 holds a row of no episode that was made"):
        reproduce(minutes=0.05, n_workers=0)

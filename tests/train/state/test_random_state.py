"""Random states put back on a machine with other devices."""

import pytest
import torch

from ai.train.state.random_state import random_state, set_random_state


@pytest.mark.parametrize("n_devices", [0, 1, 4])
def test_states_of_more_or_fewer_devices_than_there_are_go_where_there_is_one(n_devices, monkeypatch):
    put_back = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: put_back.append((int(state[0]), device)))
    state = random_state() | {"cuda": [torch.full((16,), k, dtype=torch.uint8) for k in (5, 6)]}
    first = torch.rand(3)
    set_random_state(state)
    assert put_back == [(5, 0), (6, 1)][:n_devices]
    assert torch.equal(torch.rand(3), first)

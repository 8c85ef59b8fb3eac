"""The pretended device refuses what a GPU refuses: else the tests that run on it prove nothing."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

from tests.devices import computed_on
from tests.pretended_cuda import PretendedCuda, SyncError
from tests.pretended_streams import StreamError


@pytest.fixture
def cuda():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with PretendedCuda() as pretended:
        yield pretended


@pytest.fixture
def x(cuda):
    return torch.arange(6.0, device="cuda").view(2, 3)


APART = {
    "a sum": lambda x: x + torch.ones(3),
    "a product": lambda x: x @ torch.ones(3, 2),
    "joined": lambda x: torch.cat([x, torch.ones(2, 3)]),
    "a layer": lambda x: nn.Linear(3, 2)(x),
    "a number that is stacked": lambda x: torch.stack([x.sum(), torch.ones(())]),
    "an embedding": lambda x: nn.functional.embedding(x.long(), torch.ones(9, 2)),
    "one number in a list": lambda x: x + torch.tensor([1.0]),
    "made in a forward": lambda x: x * torch.arange(3.0),
    "places": lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.long)),
    "scattered": lambda x: x.scatter_add(1, torch.zeros_like(x).long(), torch.ones(2, 3)),
    "chosen": lambda x: torch.where(torch.ones(2, 3) > 0, x, x),
    "the other value": lambda x: torch.where(x > 2, x, torch.zeros(3)),
    "a mask": lambda x: x.masked_fill(torch.ones(2, 3) > 0, 0.0),
    "bounds": lambda x: x.clamp(min=torch.zeros(3)),
    "edges": lambda x: torch.bucketize(x, torch.ones(2)),
    "classes": lambda x: nn.functional.cross_entropy(x, torch.tensor([0, 1])),
    "weights of classes": lambda x: nn.functional.cross_entropy(x, torch.zeros_like(x[:, 0]).long(), torch.ones(3)),
    "statistics": lambda x: nn.functional.batch_norm(x, torch.zeros(3), torch.ones(3), training=True),
    "an attention's mask": lambda x: nn.functional.scaled_dot_product_attention(x, x, x, torch.zeros(2, 2)),
    "a state": lambda x: nn.LSTM(3, 2).to("cuda")(x, (torch.zeros(1, 2), torch.zeros(1, 2))),
    "a number of the device into the CPU": lambda x: torch.zeros(2, 3).add_(x.sum()),
    "all at once": lambda x: torch._foreach_mul_([x], [torch.ones(2, 3)]),
    "written out": lambda x: torch.add(x, x, out=torch.empty(2, 3)),
}


@pytest.mark.parametrize("name", APART)
def test_tensors_of_two_devices_do_not_meet(name, x):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        APART[name](x)


def test_a_number_of_the_cpu_is_passed_by_value(x):
    assert (x + torch.ones(())).device.type == "cuda"
    assert torch.where(x > 2, 0.0, x).device.type == "cuda"
    assert torch.where(x > 2, torch.tensor(0.0), x).device.type == "cuda"


WAITS = {
    "item": lambda x: x.sum().item(),
    "a condition": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "to the CPU": lambda x: x.cpu(),
    "from the CPU": lambda x: torch.ones(3).to(x.device),
    "from pageable memory": lambda x: torch.ones(3).to("cuda"),
    "a list": lambda x: torch.tensor([1.0], device=x.device),
    "chosen by truth": lambda x: x[x > 2],
    "chosen by the CPU": lambda x: x[torch.tensor([1])],
    "places": lambda x: x.nonzero(),
    "compared": lambda x: torch.equal(x, x),
    "classes counted": lambda x: nn.functional.one_hot(x.long()),
    "drawn": lambda x: x.softmax(1).multinomial(1),
    "synchronised": lambda x: torch.cuda.synchronize(),
    "an event": lambda x: torch.cuda.Event().synchronize(),
    "a whole number": lambda x: int(x.sum()),
    "a branch": lambda x: 1 if x.sum() else 0,
    "a place in a list": lambda x: [0, 1, 2][x[0, 1].long()],
    "an end": lambda x: x[: x[0, 1].long()],
    "the greatest by Python": lambda x: max(x[0]),
    "contained": lambda x: 3.0 in x,
    "printed": lambda x: str(x),
    "in a text": lambda x: f"{x.sum():.2f}",
    "pickled": lambda x: pickle.dumps(x),
    "places of truth": lambda x: torch.where(x > 1),
    "kinds": lambda x: x.unique(),
    "as often as the device says": lambda x: x.repeat_interleave(torch.ones_like(x[:, 0]).long(), 0),
    "filled with it": lambda x: torch.full((2,), x.sum(), device=x.device),
    "counted up to it": lambda x: torch.arange(x.sum(), device=x.device),
    "a list of the device's numbers": lambda x: torch.tensor([x.sum(), x.sum()]),
    "new from numbers": lambda x: x.new_tensor([1.0]),
    "from an array": lambda x: torch.as_tensor(np.ones(2), device=x.device),
    "chosen by a list": lambda x: x[[0, 1]],
    "an inverse that is checked": lambda x: torch.linalg.inv(x @ x.T + torch.eye(2, device=x.device)),
    "a distribution that checks": lambda x: torch.distributions.Categorical(logits=x, validate_args=True),
    "into pageable memory": lambda x: torch.empty(2, 3).copy_(x, non_blocking=True),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_refused_where_nothing_may_wait(name, cuda, x):
    WAITS[name](x)
    with cuda.no_sync(), pytest.raises(SyncError, match="waits for the device"):
        WAITS[name](x)


def test_what_does_not_wait_is_let_through(cuda, x):
    with cuda.no_sync():
        x[x > 2] = 0.0
        there = torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        nn.functional.one_hot(x.long(), 9)
        x.repeat_interleave(torch.ones_like(x[:, 0]).long(), 0, output_size=2)
        y = nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True)
        made = [x.new_zeros(2), torch.zeros_like(x), torch.full((), 3.0, device=x.device), torch.rand(2, device="cuda")]
    assert all(z.device == torch.device("cuda", 0) and z.is_cuda for z in [there, y, *made])


def test_numpy_and_generators_belong_to_a_device(x):
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        x.numpy()
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.rand(2, device="cuda", generator=torch.Generator())
    with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator but found 'cuda'"):
        torch.rand(2, generator=torch.Generator("cuda"))
    for draws in (
        lambda: x.uniform_(generator=torch.Generator()),
        lambda: torch.bernoulli(x.sigmoid(), generator=torch.Generator()),
        lambda: torch.multinomial(x.softmax(1), 1, generator=torch.Generator()),
        lambda: nn.init.trunc_normal_(x, generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
            draws()
    drawn = torch.rand(2, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    assert torch.equal(drawn.cpu(), torch.rand(2, generator=torch.Generator().manual_seed(1)))


def test_a_copy_to_page_locked_memory_arrives_when_it_was_waited_for(x):
    target = torch.zeros(3, pin_memory=True)
    target.copy_(x[1], non_blocking=True)
    assert target.isnan().all()
    torch.cuda.synchronize()
    assert target.tolist() == [3, 4, 5]


def test_an_event_waits_for_what_was_asked_before_it_and_no_more(cuda, x):
    first, second = torch.zeros(3, pin_memory=True), torch.zeros(3, pin_memory=True)
    never, event = torch.cuda.Event(), torch.cuda.Event()
    first.copy_(x[0], non_blocking=True)
    event.record()
    second.copy_(x[1], non_blocking=True)
    assert (never.query(), event.query()) == (True, False)
    event.synchronize()
    assert event.query()
    assert first.tolist() == [0, 1, 2]
    assert second.isnan().all()
    torch.cuda.synchronize()
    assert second.tolist() == [3, 4, 5]


RACES = {
    "read while it is written": (lambda x: x.add_(1), lambda x: x.sum()),
    "written while it is written": (lambda x: x.add_(1), lambda x: x.zero_()),
    "written while it is read": (lambda x: x.sum(), lambda x: x.zero_()),
    "copied while it is written": (lambda x: x.add_(1), lambda x: x.cpu()),
    "filled while it is read": (lambda x: x.sum(), lambda x: x.copy_(torch.ones(2, 3).pin_memory(), non_blocking=True)),
    "seen through a view": (lambda x: x[0].add_(1), lambda x: x.view(6).sum()),
}
ORDERS = {
    "the stream": lambda side: side.wait_stream(torch.cuda.current_stream()),
    "an event": lambda side: side.wait_event(torch.cuda.current_stream().record_event()),
    "the event of another": lambda side: torch.cuda.current_stream().record_event().wait(side),
    "the CPU": lambda side: torch.cuda.synchronize(),
    "the CPU, for one stream": lambda side: torch.cuda.current_stream().synchronize(),
    "the CPU, for an event": lambda side: torch.cuda.current_stream().record_event().synchronize(),
}


@pytest.mark.parametrize("name", RACES)
def test_a_stream_that_has_not_waited_for_another_does_not_meet_its_work(name, x):
    first, second = RACES[name]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    first(x)
    with torch.cuda.stream(side), pytest.raises(StreamError, match=r"in stream 1 that may still be .* in stream 0"):
        second(x)


@pytest.mark.parametrize("order", ORDERS)
def test_a_stream_that_has_waited_goes_on_with_the_work_of_another(order, x):
    for first, second in RACES.values():
        side = torch.cuda.Stream()
        first(x)
        ORDERS[order](side)
        with torch.cuda.stream(side):
            assert torch.cuda.current_stream() is side
            second(x)
            made = torch.ones(2, device="cuda") * 2
        with pytest.raises(StreamError, match="that may still be"):
            made + 1
        torch.cuda.current_stream().wait_stream(side)
        assert (made + 1).tolist() == [3, 3]


def test_looking_at_memory_and_reading_it_twice_are_no_races(x):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    x.sum()
    with torch.cuda.stream(side):
        x.view(6)[1:].mean()
    torch.cuda.current_stream().wait_stream(side)
    x.add_(1)
    with torch.cuda.stream(side):
        seen = x.view(6)[2:]
        side.wait_stream(torch.cuda.default_stream())
        seen.sum()


def test_a_thread_that_begins_meanwhile_has_the_device_and_its_default_stream(cuda, x):
    found = []

    def work():
        found.append((torch.cuda.current_stream() is torch.cuda.default_stream(), x.new_zeros(2).device))
        found.append(torch.empty_like(x, device="cpu", pin_memory=True).is_pinned())
        try:
            x + torch.ones(3)
        except RuntimeError as error:
            found.append(str(error))

    with torch.cuda.stream(torch.cuda.Stream()):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found[:2] == [(True, torch.device("cuda", 0)), True]
    assert "Expected all tensors to be on the same device" in found[2]


def test_there_is_one_device(x):
    for asks in (
        lambda: torch.ones(2).to("cuda:1"),
        lambda: torch.ones(2).cuda(1),
        lambda: torch.ones(2, device="cuda:1"),
        lambda: torch.Generator("cuda:1"),
    ):
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            asks()
    assert torch.ones(2).to("cuda:0").device == torch.ones(2).to(0).device == torch.ones(2).cuda(0).device == x.device
    with torch.device("cuda"):
        assert torch.ones(2).device == x.device


def test_a_tensor_takes_other_data(x):
    held = nn.Linear(3, 2).to("cuda").weight
    held.data = x.double()
    assert (held.dtype, held.requires_grad) == (torch.float64, True)
    assert (held + 1).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert held.data.tolist() == x.tolist()


def test_a_gradient_lies_where_its_tensor_does(x):
    with pytest.raises(RuntimeError, match="expected device cuda:0 but got cpu"):
        x.requires_grad_().mul(2).backward(torch.ones(2, 3))


def test_page_locked_memory_that_is_still_read_must_not_be_written_to(x):
    source = torch.ones(3).pin_memory()
    source.to("cuda", non_blocking=True)
    source.zero_()
    with pytest.raises(RuntimeError, match="written to while a copy to the device read it"):
        torch.cuda.synchronize()


def test_a_network_learns_there_as_on_the_cpu(cuda):
    def learn(device):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
        first = net[0].weight
        net.to(device)
        assert net[0].weight is first
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        x = torch.randn(5, 3, 4, 4).to(device)
        for _ in range(2):
            net(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return copy.deepcopy(net).cpu().state_dict()

    torch.testing.assert_close(learn("cuda"), learn("cpu"))


def test_a_test_of_the_cpu_has_its_numbers_computed_there(cuda):
    net, x = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), torch.randn(4, 3, requires_grad=True)
    twin, seen = copy.deepcopy(net), []
    net[0].register_forward_hook(lambda module, args, out: seen.append((args[0].is_cuda, module.weight.is_cuda)))
    results = []
    of_net, of_both = computed_on("cuda", net), computed_on("cuda", lambda net, x: net(x))
    for call, args in ((of_net, [x]), (of_both, [net, x]), (twin, [x])):
        out = call(*args)
        assert not out.is_cuda
        out[:, 0].square().sum().backward()
        results.append([out.detach(), x.grad.clone()])
        x.grad = None
    assert seen == [(True, True)] * 2
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(results[1], results[2])
    torch.testing.assert_close(net[0].weight.grad, 2 * twin[0].weight.grad)
    assert (net[1].num_batches_tracked, twin[1].num_batches_tracked) == (2, 1)
    assert net[1].running_mean.abs().sum() > 0
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        computed_on("cuda", lambda x: x + torch.ones(3))(x)
    with pytest.raises(AssertionError):
        computed_on("cuda", lambda x: torch.ones(3))(x)


def test_autocast_and_the_gradient_scaler_work_there(cuda):
    net = nn.Linear(3, 2).to("cuda")
    optimizer, scaler = torch.optim.SGD(net.parameters()), torch.amp.GradScaler("cuda")
    with cuda.no_sync():
        with torch.autocast("cuda", torch.float16):
            out = net(torch.ones(4, 3, device="cuda"))
        assert out.dtype == torch.float16
        scaler.scale(out.float().mean()).backward()
        scaler.unscale_(optimizer)
    assert float(net.weight.grad.sum()) == pytest.approx(3.0, rel=1e-2)
    scaler.step(optimizer)
    scaler.update()


def test_afterwards_there_is_no_such_device(cuda):
    cuda.__exit__(None, None, None)
    try:
        assert not torch.cuda.is_available()
        assert PretendedCuda.active is None
    finally:
        cuda.__enter__()

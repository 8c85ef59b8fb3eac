import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn

import ai.model as m
from tests.pretended_cuda import PretendedCuda


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tokens(n=6, batch=2, dim=8):
    return torch.randn(batch, n, dim, dtype=torch.float64)


class Twice(m.Model):
    """One block, used twice in a forward."""

    def __init__(self):
        super().__init__()
        self.block = m.tx_enc_blk(8, 2, causal=True, rotary=True)

    def forward(self, x, cache=None):
        x = self.block(x, cache=cache)
        return x + self.block(x * 0.5, cache=cache)


def grown(net, x, sizes, cache, *args):
    return torch.cat([net(part, *args, cache=cache) for part in x.split(sizes, 1)], 1)


def test_a_block_used_twice_has_two_entries(on_device):
    net, x, cache = Twice().double(), tokens(), m.KVCache()
    torch.testing.assert_close(grown(on_device(net), x, [3, 1, 2], cache), net(x), rtol=1e-12, atol=1e-12)
    assert cache.length() == 6


def test_a_stack_of_one_block_several_times_has_an_entry_for_each(on_device):
    net, x = m.tx_enc(3, 8, 2, causal=True).double(), tokens()
    net.blocks[1] = net.blocks[2] = net.blocks[0]
    torch.testing.assert_close(grown(on_device(net), x, [1] * 6, m.KVCache()), net(x), rtol=1e-12, atol=1e-12)


def test_a_function_says_where_a_forward_begins():
    block, x, cache = m.sa(8, 2, causal=True).double(), tokens(), m.KVCache()

    def net(x, cache):
        with cache.forward():
            return x + block(x + block(x, cache=cache), cache=cache)

    torch.testing.assert_close(grown(net, x, [2, 1, 3], cache), net(x, m.KVCache()), rtol=1e-12, atol=1e-12)


class PlainTwice(nn.Module):
    """One block, used twice in a forward of a module that says nothing of it."""

    def __init__(self):
        super().__init__()
        self.block = m.sa(8, 2, causal=True)

    def forward(self, x, cache=None, scale=1.0):
        return self.block(self.block(x, cache=cache) * scale, cache=cache)


class PlainOnce(PlainTwice):
    def forward(self, x, cache=None):
        return self.block(x * 2, cache=cache)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_block_used_twice_by_a_plain_module_is_refused_until_it_says_so(by_name):
    net, cache = PlainTwice(), m.KVCache()

    def call(net, x):
        return net(x, cache=cache) if by_name else net(x, cache)

    with pytest.raises(ValueError, match=r"called again within one call of a module.*: say which by `with cache.forw"):
        call(nn.Sequential(net)[0], tokens().float())
    with pytest.raises(ValueError, match="called again within one call of a module"):
        net(x=tokens().float(), cache=m.KVCache())
    cache.reset()  # of the first half of the forward that was refused
    with cache.forward():
        call(net, tokens().float())
    cache.reset()
    once, buffer = PlainOnce(), tokens().float()[:, :1].clone()
    with torch.no_grad():  # the next forward is another call, even of the same tensor
        grown = torch.cat([call(once, buffer) for _ in range(3)], 1)
    torch.testing.assert_close(grown, once(buffer.expand(-1, 3, -1)), rtol=1e-5, atol=1e-6)


def test_a_cache_that_is_no_longer_used_is_freed_at_once():
    net, cache = PlainOnce(), m.KVCache()
    gc.disable()
    try:
        net(tokens().float(), cache=cache)
        net(tokens().float(), cache)
        gone = weakref.ref(cache)
        del cache
        assert gone() is None
    finally:
        gc.enable()


def test_blocks_in_a_plain_loop_share_a_cache():
    blocks, x, cache = [m.tx_enc_blk(8, 2, causal=True).double() for _ in range(3)], tokens(), m.KVCache()

    def net(x, cache=None):
        for block in blocks:
            x = block(x, cache=cache)
        return x

    torch.testing.assert_close(grown(net, x, [1] * 6, cache), net(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="must be called in the order of their first forward"):
        blocks[1](x[:, :1], cache=cache)
    assert cache.length() == 6


def test_what_may_be_a_second_use_or_a_second_forward_is_asked():
    block, x, cache = m.sa(8, 2, causal=True).double(), tokens(), m.KVCache()
    with pytest.raises(ValueError, match=r"say which by `with cache.forward\(\)"):
        block(block(x, cache=cache), cache=cache)


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("with_network", [False, True])
def test_a_copy_goes_on_by_itself(how, with_network, on_device):
    if how == "pickle" and PretendedCuda.active is not None:
        pytest.skip("what is pickled of a pretended device comes back on the CPU")
    net, x = m.tx_enc(2, 8, 2, causal=True, rotary=True).double(), tokens(4)
    cache = m.KVCache()
    with torch.no_grad():
        on_device(net)(x[:, :2], cache=cache)
        copied = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda c: pickle.loads(pickle.dumps(c))}[how](
            cache
        )
        other = copy.deepcopy(net) if with_network else net
        branch = torch.cat([x[:, :2], x[:, 3:], x[:, 2:3]], 1)
        first = on_device(net)(x[:, 2:], cache=cache)
        second = torch.cat([on_device(other)(branch[:, i : i + 1], cache=copied) for i in (2, 3)], 1)
        torch.testing.assert_close(first, net(x)[:, 2:], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(second, net(branch)[:, 2:], rtol=1e-12, atol=1e-12)


def test_selected_rows_go_on_as_those_rows(any_device, on_device):
    net = m.tx_dec(2, 8, 2, rotary=True).double()
    x, context = tokens(5), tokens(3)
    cache, rows = m.KVCache(), torch.tensor([1, 1, 0])
    with torch.no_grad():
        on_device(net)(x[:, :3], context, cache=cache)
        assert cache.select(rows.to(any_device)) is cache
        found = on_device(net)(x[rows, 3:], context[rows], cache=cache)
        torch.testing.assert_close(found, net(x[rows], context[rows])[:, 3:], rtol=1e-12, atol=1e-12)


def test_a_cropped_cache_forgets_a_draft(on_device):
    net, x = m.tx_dec(2, 8, 2, rotary=True).double(), tokens(6)
    context, cache = tokens(3), m.KVCache()
    with torch.no_grad():
        on_device(net)(torch.cat([x[:, :2], tokens(3)], 1), context, cache=cache)
        cache.crop(2)
        assert cache.length() == 2
        found = grown(on_device(net), x[:, 2:], [1, 3], cache, context)
        torch.testing.assert_close(found, net(x, context)[:, 2:], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"n \(7\) must be from 0 to the 6 tokens"):
        cache.crop(7)


def test_gradients_of_a_forward_outlive_a_crop(on_device):
    net, x, cache = m.sa(8, 2, causal=True).double(), tokens(4), m.KVCache()
    out = on_device(net)(x, cache=cache)
    cache.crop(2)
    with torch.no_grad():
        torch.testing.assert_close(on_device(net)(x[:, 2:3], cache=cache), out[:, 2:3])
    (found,) = torch.autograd.grad(out.sum(), net.kv.weight)
    (expected,) = torch.autograd.grad(net(x).sum(), net.kv.weight)
    torch.testing.assert_close(found, expected)


def test_a_network_that_changes_its_type_is_asked_to_begin_anew():
    net, cache = m.sa(8, 2, causal=True), m.KVCache()
    net(tokens().float(), cache=cache)
    with pytest.raises(ValueError, match=r"k \(torch.float64\) must have the type of the cache, torch.float32"):
        net.double()(tokens(), cache=cache)


class Narrowing(m.Model):
    """Its second attention sees the last token alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second = m.sa(8, 2, causal=True), m.sa(8, 2, causal=True)

    def forward(self, x, cache=None):
        return self.second(self.first(x, cache=cache)[:, -1:], cache=cache)


def test_a_crop_that_would_leave_numbers_nobody_wrote_is_refused():
    net, cache = Narrowing().double(), m.KVCache()
    net(tokens(5), cache=cache)
    with pytest.raises(ValueError, match=r"n \(3\) must be 0 where attentions have seen unlike numbers .* 5, 1"):
        cache.crop(3)
    assert cache.crop(5).length() == 5
    x = tokens(2)
    torch.testing.assert_close(net(x, cache=cache.crop(0)), net(x))


def test_a_cache_that_was_reset_is_new():
    net, cache = m.tx_dec(1, 8, 2).double(), m.KVCache()
    net(tokens(3), tokens(3), cache=cache)
    cache.reset()
    x, context = tokens(2, batch=3), tokens(4, batch=3)
    torch.testing.assert_close(net(x, context, cache=cache), net(x, context), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("change", ["another", "written to"])
def test_a_context_that_changes_is_noticed(change, inference):
    net = m.tx_dec(2, 8, 2).double()
    with torch.inference_mode() if inference else torch.no_grad():
        x, context, cache = tokens(4), tokens(3), m.KVCache()
        net(x[:, :2], context, cache=cache)
        torch.testing.assert_close(net(x[:, 2:3], context.clone(), cache=cache), net(x, context)[:, 2:3])
        if change == "another":
            context = tokens(3)
        else:
            context[0, 0, 0] += 1
        with pytest.raises(ValueError, match=r"context \(2, 3, 8\) must be the one that the cache has kept"):
            net(x[:, 3:], context, cache=cache)


def test_a_forward_that_raises_leaves_no_trace():
    class Fragile(m.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = m.sa(8, 2, causal=True), m.sa(8, 2, causal=True)
            self.fails = False

        def forward(self, x, cache=None):
            x = x + self.first(x, cache=cache)
            if self.fails:
                raise RuntimeError("interrupted")
            return x + self.second(x, cache=cache)

    net, x, cache = Fragile().double(), tokens(4), m.KVCache()
    with torch.no_grad():
        parts = [net(x[:, :2], cache=cache)]
        net.fails = True
        with pytest.raises(RuntimeError, match="interrupted"):
            net(x[:, 2:], cache=cache)
        net.fails = False
        parts.append(net(x[:, 2:], cache=cache))
        torch.testing.assert_close(torch.cat(parts, 1), net(x), rtol=1e-12, atol=1e-12)


def test_a_cache_of_another_network_is_refused():
    x, cache = tokens(3), m.KVCache()
    m.Model(m.tx_enc(1, 8, 2, causal=True)).double()(x, cache=cache)
    with pytest.raises(ValueError, match="the cache knows 1 attentions a forward, and this one goes through more"):
        m.Model(m.tx_enc(2, 8, 2, causal=True)).double()(x, cache=cache)
    cache.reset()
    m.Model(m.tx_enc(2, 8, 2, causal=True)).double()(x, cache=cache)
    with pytest.raises(
        ValueError, match="a forward must go through all 2 attentions of the cache, this one went through 1"
    ):
        m.Model(m.tx_enc(1, 8, 2, causal=True)).double()(x, cache=cache)


def test_two_threads_at_once_are_refused():
    cache, found = m.KVCache(), []

    def intrude():
        try:
            with cache.forward():
                pass
        except RuntimeError as error:
            found.append(str(error))

    with cache.forward():
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="copy must be called between two forwards"):
            copy.copy(cache)
    assert found == ["a cache must be used by one thread at a time: give each its own copy"]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = m.sa(8, 2, causal=True, n_kv_heads=1)

    def forward(self, x, cache=None):
        return self.net(x, cache=cache)


def test_a_dropped_cache_is_collected_with_its_network():
    import gc
    import weakref

    net, cache = Plain().double(), m.KVCache()
    net(tokens(2), cache=cache)
    gone = weakref.ref(net.net)
    del net
    gc.collect()
    assert gone() is None
    assert cache.length() == 2

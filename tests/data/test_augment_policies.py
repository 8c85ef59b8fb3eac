"""RandAugment and AugMix on batches, against torchvision's own."""

import pytest
import torch
from torchvision.transforms import v2

from ai.data import Dataset, augment
from ai.data.augment import policies

X = torch.rand(40, 3, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
THEIRS = dict(zip(policies._CHANGES, v2.RandAugment._AUGMENTATION_SPACE, strict=True))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", policies._CHANGES)
@pytest.mark.parametrize(
    ("table", "bins", "reach", "bits"), [(v2.RandAugment, 31, 150 / 331, 8), (v2.AugMix, 10, 1 / 3, 4)]
)
def test_each_change_is_torchvisions(table, bins, reach, bits, name, on_device):
    theirs = THEIRS[name]
    if theirs not in table._AUGMENTATION_SPACE:
        return
    magnitudes, signed = table._AUGMENTATION_SPACE[theirs]
    assert signed == policies._CHANGES[name]
    level, pixels = 7, (X[:3] + 1) / 2
    strengths = magnitudes(bins, 16, 20)
    for sign in (1, -1) if signed else (1,):
        ours = policies._signed(name, policies._amount(name, level / (bins - 1), X.shape, reach, bits), sign)
        strength = 0.0 if strengths is None else float(strengths[level]) * sign
        expected = v2.RandAugment()._apply_image_or_video_transform(
            pixels, theirs, strength, interpolation=v2.InterpolationMode.NEAREST, fill={torch.Tensor: 0.0}
        )
        got = on_device(policies._changed)(pixels, [name] * 3, [ours] * 3)
        assert torch.allclose(got, expected, atol=1e-6), (got - expected).abs().max()


@pytest.mark.parametrize("apply", [augment.rand_augment(), augment.rand_augment(3, 30), augment.aug_mix()])
def test_policies_are_seeded_change_each_image_its_own_way_and_keep_the_range(apply, on_device):
    same = X[:1].expand(40, -1, -1, -1)
    a, b, c = (on_device(apply)(same, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert len({image.numpy().tobytes() for image in a}) > 20
    assert float(a.min()) >= -1
    assert float(a.max()) <= 1


def test_a_batch_is_changed_as_its_images_one_by_one(monkeypatch, on_device):
    together = on_device(augment.rand_augment(2, 9))(X, generator=generator())
    whole = policies._changed

    def alone(pixels, names, amounts):
        rows = [whole(pixels[k : k + 1], names[k : k + 1], amounts[k : k + 1]) for k in range(len(pixels))]
        return torch.cat(rows)

    monkeypatch.setattr(policies, "_changed", alone)
    one_by_one = on_device(augment.rand_augment(2, 9))(X, generator=generator())
    assert torch.allclose(one_by_one, together, atol=1e-6)


def test_colours_leave_alpha_alone_and_moves_take_it_along(on_device):
    rgba = torch.cat([X[:2], torch.ones(2, 1, 16, 20)], 1)
    pixels = (rgba + 1) / 2
    assert torch.equal(on_device(policies._changed)(pixels, ["equalize", "solarize"], [0.0, 0.2])[:, 3], pixels[:, 3])
    moved = on_device(policies._changed)(pixels, ["translate_x"] * 2, [5] * 2)
    assert torch.equal(moved[:, :, :, :5], torch.zeros(2, 4, 16, 5))
    assert torch.equal(moved[:, :, :, 5:], pixels[:, :, :, :-5])


def test_aug_mix_without_changes_is_the_image(monkeypatch, on_device):
    monkeypatch.setattr(policies, "_changed", lambda pixels, names, amounts: pixels)
    assert torch.allclose(on_device(augment.aug_mix())(X, generator=generator()), X, atol=1e-6)


def test_a_loader_with_a_policy_resumes_exactly():
    def loader():
        return Dataset({"x": X}).then({"x": augment.rand_augment()}).loader(8, train=True)

    whole = loader()
    iterator = iter(whole)
    next(iterator)
    state, expected = whole.state_dict(), next(iterator)["x"]
    again = loader()
    again.load_state_dict(state)
    assert torch.equal(next(iter(again))["x"], expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augment.rand_augment(0), "n_changes must be at least 1, got 0"),
        (lambda: augment.rand_augment(2, 31), r"magnitude must lie in \[0, bins - 1\], got 31 with bins 31"),
        (lambda: augment.aug_mix(11), r"severity must lie in \[1, 10\], got 11"),
        (lambda: augment.aug_mix(width=0), "width must be at least 1, got 0"),
        (lambda: augment.aug_mix(alpha=0), "alpha must be positive and finite, got 0"),
        (
            lambda: augment.rand_augment()(torch.zeros(2, 5, 4, 4), generator()),
            "rand_augment needs images of 1, 3 or 4",
        ),
        (lambda: augment.aug_mix()(X * 4, generator()), r"aug_mix needs images in \[-1, 1\], got values from"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [augment.rand_augment, augment.aug_mix])
def test_a_policy_used_twice_draws_twice(make, monkeypatch):
    drawn = []
    change = policies._changed
    monkeypatch.setattr(policies, "_changed", lambda x, *of: drawn.append(of) or change(x, *of))
    next(iter(Dataset({"x": X}).then({"x": make()}).then({"x": make()}).loader(40)))
    half = len(drawn) // 2
    assert drawn[0] != drawn[half]
    again = generator()
    assert not torch.equal(make()(X, generator=again), make()(X, generator=again))

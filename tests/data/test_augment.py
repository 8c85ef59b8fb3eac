"""Augmentation: what each function may and may not change."""

import pytest
import torch

from ai.data import Dataset, augment

X = torch.rand(200, 3, 12, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
Y = torch.arange(200) % 10


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


ON_IMAGES = [augment.flip(), augment.crop(3), augment.color(), augment.cutout(4)]
ON_BATCH = [augment.mixup(10), augment.cutmix(10)]


@pytest.mark.parametrize("apply", ON_IMAGES)
def test_image_functions_are_seeded_keep_shape_and_range_and_leave_the_input(apply, on_device):
    before, there = X.clone(), on_device(apply)
    a, b, c = there(X, generator=generator()), there(X, generator=generator()), there(X, generator=generator(1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == X.shape
    assert float(a.min()) >= -1 - 1e-6
    assert float(a.max()) <= 1 + 1e-6
    assert torch.equal(X, before)
    changed = (a != X).flatten(1).any(1)
    assert 60 < int(changed.sum())


def test_flip_mirrors_half_of_the_images(on_device):
    y = on_device(augment.flip())(X, generator=generator())
    mirrored = (y == X.flip(-1)).flatten(1).all(1)
    same = (y == X).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert 70 < int(mirrored.sum()) < 130
    assert torch.equal(on_device(augment.flip(1.0))(X, generator=generator()), X.flip(-1))


def test_crop_shifts_each_image_by_its_own_offset(on_device):
    y = on_device(augment.crop(2))(X, generator=generator())
    padded = torch.nn.functional.pad(X, (2, 2, 2, 2), value=-1)
    offsets = set()
    for image, source in zip(y, padded, strict=True):
        found = [(i, j) for i in range(5) for j in range(5) if torch.equal(image, source[:, i : i + 12, j : j + 10])]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) == 25


def test_cutout_greys_one_square(on_device):
    y = on_device(augment.cutout(4))(X, generator=generator())
    grey = (y == 0).all(1)
    for mask in grey:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert int(mask.sum()) == len(rows) * len(columns) <= 16
        assert len(rows) >= 2
        assert torch.equal(rows, torch.arange(int(rows[0]), int(rows[-1]) + 1))
    assert torch.equal(y[~grey[:, None].expand_as(y)], X[~grey[:, None].expand_as(y)])


def test_color_with_no_amounts_changes_nothing_and_each_amount_does_its_part(on_device):
    assert torch.allclose(on_device(augment.color(0, 0, 0))(X, generator=generator()), X, atol=1e-6)
    grey = X[:, :1].expand(-1, 3, -1, -1) / 2
    assert torch.allclose(on_device(augment.color(0, 0, 1))(grey, generator=generator()), grey, atol=1e-5)
    bright = on_device(augment.color(0.5, 0, 0))(X / 4 - 0.5, generator=generator())
    factor = (bright + 1) / (X / 4 + 0.5)
    assert float((factor.flatten(1).amax(1) - factor.flatten(1).amin(1)).max()) < 1e-4
    assert on_device(augment.color())(X[:, :1], generator=generator()).shape == (200, 1, 12, 10)


@pytest.mark.parametrize("apply", ON_BATCH)
def test_mixes_give_probabilities_that_match_the_pixels(apply, on_device):
    x = torch.nn.functional.one_hot(Y, 10).float()[:, :, None, None].expand(-1, -1, 8, 8)  # channel c marks class c
    mixed = on_device(apply)({"x": x, "y": Y.to(torch.uint8), "z": 1}, generator=generator())
    assert mixed["z"] == 1
    assert torch.allclose(mixed["y"].sum(1), torch.ones(200))
    assert torch.allclose(mixed["x"].mean((2, 3)), mixed["y"], atol=1e-5)
    assert 20 < int((mixed["y"].max(1).values < 0.999).sum())
    again = on_device(apply)(mixed, generator=generator(1))  # probabilities may be mixed again
    assert torch.allclose(again["y"].sum(1), torch.ones(200))


def test_mixup_shares_follow_their_beta_distribution(on_device):
    y = on_device(augment.mixup(200, alpha=1.0))({"x": X, "y": torch.arange(200)}, generator=generator())["y"]
    share = torch.sort(y.diagonal()).values
    # alpha 1 is uniform: the Kolmogorov-Smirnov distance of 200 draws is below 0.115 in 99 % of all seeds
    assert float((share - torch.linspace(0, 1, 200)).abs().max()) < 0.13


def test_chained_augmentation_is_a_function_of_the_place_in_the_loader():
    ds = Dataset({"x": X, "y": Y}, postprocess={"x": lambda x: x / 2})
    ds = ds.then({"x": augment.crop(2)}).then({"x": augment.flip()}).then(augment.mixup(10))
    a, b = ds.loader(50, train=True), ds.loader(50, train=True)
    next(iter(a))
    b.load_state_dict(a.state_dict())
    first, second = next(iter(a)), next(iter(b))
    assert torch.equal(first["x"], second["x"])
    assert first["y"].shape == (50, 10)
    assert float(first["x"][first["x"] > -0.999].abs().max()) <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augment.flip(1.5), r"p must lie in \[0, 1\], got 1.5"),
        (lambda: augment.crop(0), "padding must be at least 1 pixel, got 0"),
        (lambda: augment.color(contrast=2), r"contrast must lie in \[0, 1\], got 2"),
        (lambda: augment.cutout(0), "size must be at least 1 pixel, got 0"),
        (lambda: augment.mixup(1), "n_classes must be at least 2, got 1"),
        (lambda: augment.cutmix(10, 0), "alpha must be positive and finite, got 0"),
    ],
)
def test_bad_amounts_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "change"), [("crop", augment.crop(1)), ("color", augment.color()), ("cutout", augment.cutout(1))]
)
def test_images_of_another_type_or_range_are_refused(name, change):
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(
        ValueError, match=rf"{name} needs images as floating point .* in \[-1, 1\], got torch.uint8: call"
    ):
        change(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), generator)
    with pytest.raises(
        ValueError, match=rf"{name} needs images in \[-1, 1\], got values from 0 to 2.5: normalise after"
    ):
        change(torch.linspace(0, 2.5, 96).view(2, 3, 4, 4), generator)
    assert change(torch.linspace(-1, 1, 96).view(2, 3, 4, 4), generator).shape == (2, 3, 4, 4)


def test_mixup_of_bytes_is_refused():
    batch = {"x": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "y": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=r"mixup needs images as floating point numbers, got torch.uint8"):
        augment.mixup(2)(batch, torch.Generator())
    flipped = augment.flip(1.0)(torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4), torch.Generator())
    assert flipped.flatten().tolist() == [3, 2, 1, 0]  # a mirror takes any pixels


def ramps(n, height, width):
    """Images whose two channels tell the row and the column."""
    rows = torch.arange(height).float()[:, None].expand(height, width) + 0.5
    columns = torch.arange(width).float()[None, :].expand(height, width) + 0.5
    return torch.stack([rows / height, columns / width])[None].repeat(n, 1, 1, 1) * 2 - 1


def test_random_resized_crops_are_boxes_of_the_asked_scale_and_ratio(on_device):
    x = ramps(400, 48, 64)
    y = on_device(augment.random_resized_crop((16, 20), (0.2, 0.6), (0.5, 2.0)))(x, torch.Generator().manual_seed(0))
    assert y.shape == (400, 2, 16, 20)
    inner = y[:, :, 2:-2, 2:-2]  # at an image's border samples repeat it
    down = inner[:, 0].diff(dim=1)
    across = inner[:, 1].diff(dim=2)
    for steps in (down, across):
        assert (steps > 0).all()
        assert float((steps - steps.mean((1, 2), keepdim=True)).abs().max()) < 2e-3  # straight, evenly spaced
    h, w = down.mean((1, 2)) / 2 * 16 * 48, across.mean((1, 2)) / 2 * 20 * 64
    area, ratio = w * h / (48 * 64), w / h
    assert 0.19 < float(area.min()) < 0.22
    assert 0.57 < float(area.max()) < 0.62
    assert 0.49 < float(ratio.min()) < 0.6
    assert 1.7 < float(ratio.max()) < 2.05
    assert abs(float(y.mean((0, 2, 3)).abs().max())) < 0.05  # centred on average
    assert y.min() >= -1
    assert y.max() <= 1


def test_a_whole_crop_is_the_image_and_one_that_cannot_fit_its_middle(on_device):
    x, crop = torch.rand(3, 3, 8, 8) * 2 - 1, on_device(augment.random_resized_crop(8, (1.0, 1.0), (1.0, 1.0)))
    whole = crop(x, torch.Generator())
    assert torch.allclose(whole, x, atol=1e-5)
    wide = ramps(1, 8, 32)
    middle = crop(wide, torch.Generator())
    assert float(middle[0, 1].mean()) == pytest.approx(0, abs=1e-5)
    assert float(middle[0, 1].max() - middle[0, 1].min()) == pytest.approx(2 * 7 / 32, abs=1e-4)
    for options, message in (
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
        ({"size": 8, "scale": (0.5, 1.5)}, r"scale must be two rising finite numbers in \(0, 1\], got \(0.5, 1.5\)"),
        ({"size": 8, "ratio": (2.0, 1.0)}, "ratio must be two rising finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            augment.random_resized_crop(**options)
    with pytest.raises(
        ValueError, match=r"random_resized_crop needs images as floating point numbers, got torch.uint8"
    ):
        augment.random_resized_crop(8)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.Generator())


def test_halves_are_cut_at_the_places_that_single_precision_gives(on_device):
    x = (torch.arange(3000.0) % 64 / 64)[:, None, None, None].expand(-1, 1, 6, 6).half()
    cut = on_device(augment.random_resized_crop(4))(x, torch.Generator().manual_seed(0))
    assert cut.dtype == torch.float16
    assert torch.allclose(cut.float(), x[:, :, :4, :4].float(), atol=1e-3)  # beyond image 2048 too


def test_cutmix_of_bytes_is_refused():
    batch = {"x": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "y": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match="cutmix needs images as floating point numbers"):
        augment.cutmix(2)(batch, torch.Generator())


def test_color_leaves_alpha_and_refuses_channels_it_does_not_know():
    x = torch.cat([X, torch.rand(200, 1, 12, 10) * 2 - 1], 1)
    y = augment.color()(x, generator=generator())
    assert torch.equal(y[:, 3], x[:, 3])
    assert torch.equal(y[:, :3], augment.color()(X, generator=generator()))
    with pytest.raises(ValueError, match=r"color needs images of 1, 3 or 4 channels \(grey, RGB, RGBA\), got 5"):
        augment.color()(torch.zeros(2, 5, 4, 4), generator=generator())


@pytest.mark.parametrize("apply", [augment.mixup(10), augment.cutmix(10)])
def test_mixes_refuse_labels_that_they_would_misread(apply):
    with pytest.raises(
        ValueError, match=r"probabilities \[batch, n_classes \(10\)\], got torch.float32 of shape \(200,\)"
    ):
        apply({"x": X, "y": Y / 10}, generator=generator())
    with pytest.raises(ValueError, match=r"n_classes \(10\)\], got torch.int64 of shape \(200, 3\)"):
        apply({"x": X, "y": torch.eye(3, dtype=torch.int64)[Y % 3]}, generator=generator())


def shares_of_mixup(batch):
    return batch["y"].max(1).values


def test_a_generator_that_went_on_gives_other_draws():
    mix, going_on = augment.mixup(200, alpha=1), generator()
    batch = {"x": X, "y": torch.arange(200)}
    first, second = (shares_of_mixup(mix(batch, generator=going_on)) for _ in range(2))
    assert torch.equal(first, shares_of_mixup(mix(batch, generator=generator())))
    assert (first - second).abs().median() > 0.05


def test_functions_of_a_dict_draw_alike_and_those_of_a_chain_do_not():
    both = {"x": augment.flip(), "mask": augment.flip()}
    for ds in (Dataset({"x": X, "mask": X[:, :1]}).then(both), Dataset({"x": X, "mask": X[:, :1]}, None, both)):
        chained = ds.then({"x": augment.cutout(2)}).then(both)
        for loader in (ds.loader(200), chained.loader(200)):
            batch = next(iter(loader))
            kept = (batch["mask"] == X[:, :1]).flatten(1).all(1)
            assert 60 < int(kept.sum()) < 140
            whole = (batch["x"] == X).flatten(1).float().mean(1) > 0.9
            assert torch.equal(whole, kept)


def test_pixels_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match=r"cutout needs images in \[-1, 1\], got values from nan to nan"):
        augment.cutout(2)(torch.full((2, 3, 4, 4), float("nan")), generator=generator())

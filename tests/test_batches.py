"""Augmentation and batches follow their formulas, on any device and number of processes."""

import hashlib

import numpy as np
import pytest
import torch
from support.made_images import toy

from hyperzoo.data import ImageBatches, ImageSet, augment, eval_batches, plan_epoch
from hyperzoo.data.augment import cutout
from hyperzoo.errors import InputError

NORM = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


# Augmentation


def loop_augment(images: np.ndarray, rows: list[list[int]], border: int, mode: str) -> np.ndarray:
    out = np.zeros_like(images)
    height, width = images.shape[-2:]
    for b, (dy, dx, flip) in enumerate(rows):
        for y in range(height):
            for x in range(width):
                sy, sx = y + dy - border, (width - 1 - x if flip else x) + dx - border
                if mode == "reflect":  # -1 -> 1, size -> size - 2
                    sy = -sy if sy < 0 else 2 * (height - 1) - sy if sy >= height else sy
                    sx = -sx if sx < 0 else 2 * (width - 1) - sx if sx >= width else sx
                if mode == "symmetric":  # -1 -> 0, size -> size - 1
                    sy = -1 - sy if sy < 0 else 2 * height - 1 - sy if sy >= height else sy
                    sx = -1 - sx if sx < 0 else 2 * width - 1 - sx if sx >= width else sx
                if 0 <= sy < height and 0 <= sx < width:
                    out[b, :, y, x] = images[b, :, sy, sx]
    return out


@pytest.mark.parametrize("mode", ["zeros", "reflect", "symmetric"])
@pytest.mark.parametrize(("channels", "height", "width", "border"), [(3, 6, 5, 2), (1, 4, 7, 0), (3, 5, 5, 4)])
def test_augment_is_the_loop(mode, channels, height, width, border):
    images = torch.randint(0, 256, (40, channels, height, width), dtype=torch.uint8)
    rows = plan_epoch(40, seed=1, epoch=0, crop_px=border).rows
    rows[:2] = torch.tensor([[0, 2 * border, 0], [2 * border, 0, 1]])  # both extremes
    assert np.array_equal(
        augment(images, rows, border, mode), loop_augment(images.numpy(), rows.tolist(), border, mode)
    )


def test_augment_refuses_what_it_cannot_do():
    images, rows = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(InputError, match="got 'mirror'"):
        augment(images, rows, 1, "mirror")
    with pytest.raises(InputError, match="4 px for 4 x 4"):
        augment(images, rows, 4, "reflect")
    with pytest.raises(InputError, match=r"\(B, 3\); got \(2, 3, 4, 4\), \(1, 3\)"):
        augment(images, rows[:1], 1)


def test_plan_is_drawn_from_seed_and_epoch_alone():
    plan = plan_epoch(2000, seed=3, epoch=5)
    torch.manual_seed(0)  # the global generator plays no part
    again = plan_epoch(2000, seed=3, epoch=5)
    assert torch.equal(plan.order, again.order) and torch.equal(plan.rows, again.rows)
    assert plan.order.sort().values.tolist() == list(range(2000))
    assert [plan.rows.amin(0).tolist(), plan.rows.amax(0).tolist()] == [[0, 0, 0], [8, 8, 1]]
    # 9 offsets of 222 each, sd 14; 1000 flips, sd 22: five standard deviations
    assert all((torch.bincount(plan.rows[:, axis]) - 2000 / 9).abs().max() < 70 for axis in (0, 1))
    assert abs(plan.rows[:, 2].sum().item() - 1000) < 110
    for other in (
        plan_epoch(2000, seed=5, epoch=3),
        plan_epoch(2000, seed=3, epoch=6),
        plan_epoch(2000, seed=4, epoch=5),
    ):
        assert (other.order == plan.order).sum() < 10 and (other.rows == plan.rows).all(
            1
        ).sum() < 60  # 1 in 162 is chance


def test_switching_one_choice_off_leaves_the_others():
    plan = plan_epoch(50, seed=0, epoch=1)
    plain = plan_epoch(50, seed=0, epoch=1, flip=False, shuffle=False)
    assert torch.equal(plain.rows[:, :2], plan.rows[:, :2]) and not plain.rows[:, 2].any()
    assert plain.order.tolist() == list(range(50))
    uncropped = plan_epoch(50, seed=0, epoch=1, crop_px=0)
    assert torch.equal(uncropped.rows[:, 2], plan.rows[:, 2]) and torch.equal(uncropped.order, plan.order)
    with pytest.raises(InputError, match="crop_px must be at least 0; got -1"):
        plan_epoch(5, seed=0, epoch=0, crop_px=-1)


# Batches


def one_epoch(images: ImageSet, epoch: int, **options) -> dict[int, torch.Tensor]:
    """The pixels that each sample is trained on, over all processes."""
    settings = {"batch_size": 6, "seed": 7, "crop_px": 2, "flip": True, **NORM, **options}
    processes, seen = settings.get("processes", 1), {}
    for rank in range(processes):
        for batch in ImageBatches(images, **settings, **({"rank": rank} if processes > 1 else {})).epoch(epoch):
            assert batch.images.dtype == torch.float32 and torch.equal(batch.labels, images.labels[batch.indices])
            for index, pixels in zip(batch.indices.tolist(), batch.images, strict=True):
                assert index not in seen
                seen[index] = pixels
    return seen


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 4}, {"processes": 2}, {"processes": 3}, {"device": torch.device("cpu")}],
)
def test_pixels_do_not_depend_on_the_machine(options):
    images = toy()
    reference, other = one_epoch(images, 2), one_epoch(images, 2, **options)
    assert sorted(reference) == sorted(other) == list(range(24))
    assert all(torch.equal(reference[index], other[index]) for index in reference)
    assert not torch.equal(one_epoch(images, 3)[0], reference[0])


def test_batches_are_the_formula():
    images, batches = toy(), ImageBatches(toy(), batch_size=8, seed=7, crop_px=2, flip=True, **NORM)
    plan = plan_epoch(24, seed=7, epoch=4, crop_px=2)
    mean, std = (np.array(NORM[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    for step, batch in enumerate(batches.epoch(4)):
        assert batch.indices.tolist() == plan.order[8 * step : 8 * step + 8].tolist()
        pixels = loop_augment(images.images[batch.indices].numpy(), plan.rows[batch.indices].tolist(), 2, "zeros")
        # float32 rounding of values up to 3.3, twice: below 1e-6
        np.testing.assert_allclose(batch.images, (pixels / 255 - mean) / std, atol=1e-6, rtol=0)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert len(batches) == 3 and step == 2


def test_incomplete_batches():
    options = {"seed": 0, "crop_px": 0, "flip": False, **NORM}
    dropped = ImageBatches(toy(23), batch_size=10, **options)
    assert [len(batch.labels) for batch in dropped.epoch(0)] == [10, 10] and len(dropped) == 2
    small = ImageBatches(toy(6), batch_size=10, **options)
    assert [len(batch.labels) for batch in small.epoch(0)] == [6] and len(small) == 1
    for wrong, words in (
        ({"batch_size": 10, "processes": 3}, "10 samples out of 24 does not divide by 3"),
        ({"batch_size": 50, "processes": 5}, "50 samples out of 24 does not divide by 5"),
        ({"batch_size": 0}, "0 samples"),
        ({"batch_size": 4, "rank": 2, "processes": 2}, "rank must be in"),
        ({"batch_size": 4, "mean": (0.5,)}, "3 channels"),
    ):
        with pytest.raises(InputError, match=words):
            ImageBatches(toy(), **{**options, **wrong})


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_counts_each_sample_once_in_order(processes):
    images = toy(101)
    shares = [list(eval_batches(images, batch_size=16, rank=r, processes=processes, **NORM)) for r in range(processes)]
    batches = [batch for share in shares for batch in share]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(101))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), images.labels)
    restored = torch.cat([batch.images for batch in batches]) * torch.tensor(NORM["std"]).view(1, 3, 1, 1)
    restored = (restored + torch.tensor(NORM["mean"]).view(1, 3, 1, 1)) * 255
    assert torch.equal(restored.round().to(torch.uint8), images.images)


def test_alternating_flips_show_both_sides_in_each_pair_of_epochs():
    flips = torch.stack([plan_epoch(2000, seed=3, epoch=epoch, flip="alternating").rows[:, 2] for epoch in range(1, 6)])
    assert torch.equal(flips[1:], 1 - flips[:-1])
    assert 900 < int(flips[0].sum()) < 1100  # the first side is a fair coin
    other = plan_epoch(2000, seed=4, epoch=1, flip="alternating").rows[:, 2]
    assert 900 < int((flips[0] == other).sum()) < 1100  # another seed, another coin
    random, alternating = (plan_epoch(2000, seed=3, epoch=2, flip=flip) for flip in (True, "alternating"))
    assert torch.equal(random.order, alternating.order) and torch.equal(random.rows[:, :2], alternating.rows[:, :2])


@pytest.mark.parametrize("height, width, size", [(5, 7, 3), (6, 4, 4), (4, 4, 9)])
def test_cutout_is_the_loop(height, width, size):
    x = torch.rand(30, 2, height, width, generator=torch.Generator().manual_seed(0)) + 1
    centers = plan_epoch(30, seed=2, epoch=1).centers
    expected = x.clone()
    for image, (y, x_) in zip(expected, centers.tolist(), strict=True):
        top, left = int(y * height) - size // 2, int(x_ * width) - size // 2
        for row in range(height):
            for column in range(width):
                if top <= row < top + size and left <= column < left + size:
                    image[:, row, column] = 0
    assert torch.equal(cutout(x, centers, size), expected)


def test_centers_are_uniform_and_leave_the_other_choices_alone():
    plan = plan_epoch(4000, seed=3, epoch=5)
    assert 0 <= plan.centers.min() and plan.centers.max() < 1
    assert (plan.centers.mean(0) - 0.5).abs().max() < 0.02  # four standard errors of a uniform mean
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(b"hyperzoo plan 3 5").digest()[:8], "big"))
    assert torch.equal(plan.order, torch.randperm(4000, generator=generator))  # drawn first, as ever

"""Image sets hold the pixels of the files, survive a damaged cache, and every fault of the data is named."""

import hashlib
import io
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from PIL import Image as Pillow
from support.made_images import CIFAR, toy, write_mirror

from hyperzoo.data import ImageSet, load_images, sources
from hyperzoo.errors import DataError, InputError, UnknownNameError

ASSETS = Path(__file__).parent / "assets"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Each test has a cache folder of its own."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hyperzoo"


@pytest.fixture
def four_shards(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HYPERZOO_DATA", str(tmp_path / "mirror"))
    return write_mirror(tmp_path / "mirror", toy())


# Image sets


def test_fingerprint_is_what_the_docstring_says():
    images = toy(3, size=2)
    content = b"hyperzoo images 3 3 2 2\n" + bytes(images.images.flatten().tolist())
    content += b"".join(label.to_bytes(8, "little") for label in images.labels.tolist())
    assert images.fingerprint == hashlib.sha256(content).hexdigest()
    pixels, labels = images.images.clone(), images.labels.clone()
    pixels[1, 2, 0, 1] ^= 1
    labels[0] = (labels[0] + 1) % 3
    others = [
        ImageSet("toy", "train", p, y, images.classes, "")
        for p, y in ((pixels, images.labels), (images.images, labels))
    ]
    assert (
        len(
            {
                images.fingerprint,
                *(other.fingerprint for other in others),
                images.take(torch.tensor([0, 2, 1])).fingerprint,
            }
        )
        == 4
    )


def test_same_pixels_in_other_files_have_the_same_fingerprint(tmp_path, monkeypatch):
    images, found = toy(), set()
    for encoding, shards in (("PNG", 1), ("WEBP", 3), ("BMP", 2)):
        write_mirror(tmp_path / encoding, images, shards, encoding)
        monkeypatch.setenv("HYPERZOO_DATA", str(tmp_path / encoding))
        loaded = load_images("c10", "train")
        assert torch.equal(loaded.images, images.images) and torch.equal(loaded.labels, images.labels)
        found.add(loaded.fingerprint)
    assert found == {images.fingerprint} and loaded.classes == ("a", "b", "c")


def test_hold_out_is_stratified_disjoint_and_repeatable():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 21)[
        torch.randperm(101, generator=torch.Generator().manual_seed(1))
    ]
    images = ImageSet(
        "toy", "train", torch.arange(101, dtype=torch.uint8).view(101, 1, 1, 1), labels, ("a", "b", "c"), ""
    )
    train, held = images.hold_out(20, seed=4)
    # 20 * (50, 30, 21) / 101 = 9.90, 5.94, 4.16: two classes are rounded up
    assert held.labels.bincount().tolist() == [10, 6, 4] and train.labels.bincount().tolist() == [40, 24, 17]
    numbers = [part.images.flatten().tolist() for part in (train, held)]
    assert sorted(numbers[0] + numbers[1]) == list(range(101)) and all(part == sorted(part) for part in numbers)
    assert images.hold_out(20, seed=4)[1].fingerprint == held.fingerprint != images.hold_out(20, seed=5)[1].fingerprint
    assert all(torch.equal(part.labels, labels[part.images.flatten().long()]) for part in (train, held))
    for count in (0, 101):
        with pytest.raises(InputError, match=f"1 to 100 of 101 samples; got {count}"):
            images.hold_out(count)


def test_half_size_is_a_triangle_over_four_pixels():
    images = toy(4)
    small = images.resized(images.images.shape[-1] // 2)
    weights = torch.tensor([1, 3, 3, 1]) / 8  # of the distances 1.5, 0.5, 0.5, 1.5 to the center, 2 - |t| in size
    windows = images.images[..., 1:-1, 1:-1].float().unfold(2, 4, 2).unfold(3, 4, 2)
    expected = torch.einsum("nchwij,i,j->nchw", windows, weights, weights)
    torch.testing.assert_close(small.images[..., 1:-1, 1:-1].float(), expected, atol=1.01, rtol=0)
    assert small.labels is images.labels and small.fingerprint != images.fingerprint


def test_image_sets_refuse_other_tensors():
    images = toy(4)
    with pytest.raises(InputError, match=r"torch\.float32"):
        ImageSet("toy", "train", images.images.float(), images.labels, images.classes, "")
    with pytest.raises(InputError, match=r"labels from .* for 1 classes"):
        ImageSet("toy", "train", images.images, torch.tensor([0, 1, -1, 0]), ("a",), "")


# The cache


def break_pixels(folder: Path) -> None:
    """Ruin the shards but keep their sizes and times: who decodes again sees it, who reads the cache does not."""
    for file in folder.glob("*.parquet"):
        times = file.stat()
        file.write_bytes(bytes(times.st_size))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_the_second_start_does_not_decode(four_shards, cache):
    first = load_images("c10", "train")
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]
    break_pixels(four_shards)
    second = load_images("c10", "train")
    assert torch.equal(first.images, second.images) and first.fingerprint == second.fingerprint
    assert (first.classes, first.origin, first.name, first.split) == (
        second.classes,
        second.origin,
        second.name,
        second.split,
    )
    shutil.rmtree(cache)
    with pytest.raises(DataError, match="not a complete parquet file"):  # without the cache the fault shows
        load_images("c10", "train")


def test_a_changed_source_is_decoded_again_into_the_same_file(four_shards, cache):
    load_images("c10", "train")
    write_mirror(four_shards.parents[2], toy(seed=1))
    assert load_images("c10", "train").fingerprint == toy(seed=1).fingerprint
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("fault", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_cache_is_noticed_and_repaired(four_shards, cache, fault):
    load_images("c10", "train")
    (file,) = cache.iterdir()
    data = file.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    file.write_bytes(
        {"flip": flipped, "cut": data[: len(data) // 2], "empty": b"", "foreign": b"\x80\x04K\x01." * 9}[fault]
    )
    with pytest.warns(UserWarning, match=rf"{file.name} is damaged .*decoding uoft-cs/cifar10"):
        assert load_images("c10", "train").fingerprint == toy().fingerprint
    assert load_images("c10", "train").fingerprint == toy().fingerprint  # no warning: repaired


@pytest.mark.fault("cache that cannot be written")
def test_a_folder_that_cannot_be_written_is_an_error_before_the_decoding(four_shards, cache, monkeypatch):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    monkeypatch.setattr("hyperzoo.data.images._decode", None)
    with pytest.raises(DataError, match=f"{re.escape(str(cache))} cannot be written .*Set HF_HOME"):
        load_images("c10", "train")


@pytest.mark.fault("cache that cannot be written")
def test_a_failed_rename_leaves_no_temporary_file(four_shards, cache):
    load_images("c10", "train")
    (file,) = cache.iterdir()
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        load_images("c10", "train")
    assert list(cache.iterdir()) == [file]


@pytest.mark.fault("cache that cannot be written")
def test_a_full_disk_is_an_error_that_leaves_nothing(four_shards, cache):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = sources.find("c10", "train").read()[0]
    assert len(source) == 24  # everything is imported before the limit holds
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"It needs 0\.0 MB\. Set HF_HOME"):  # 24 x 3 x 8 x 8 bytes
            load_images("c10", "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(cache.iterdir()) == []


# Faults of the data


def test_missing_shards_are_named(four_shards):
    (four_shards / "train-00002-of-00004.parquet").unlink()
    with pytest.raises(DataError) as caught:
        load_images("c10", "train")
    assert str(caught.value) == (
        "uoft-cs/cifar10/plain_text in HYPERZOO_DATA lacks shard train-00002-of-00004.parquet (found 3 of 4)."
    )
    (four_shards / "train-00000-of-00004.parquet").unlink()
    with pytest.raises(DataError, match=r"shards train-00000\S+, train-00002\S+ \(found 2 of 4\)"):
        load_images("c10", "train")


def test_two_versions_side_by_side(four_shards):
    write_mirror(four_shards.parents[2], toy(), shards=1)
    with pytest.raises(DataError, match="mixes shards of 2 versions of train"):
        load_images("c10", "train")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_shard_is_named(four_shards, keep):
    file = four_shards / "train-00001-of-00004.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        DataError, match=rf"train-00001-of-00004\.parquet \({file.stat().st_size} bytes\) is not a complete"
    ):
        load_images("c10", "train")


def rewrite(folder: Path, change) -> None:
    """Apply a change to the rows of the one shard of a mirror."""
    (file,) = folder.glob("train-*.parquet")
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(table.from_pylist(rows, schema=table.schema), file)


def test_broken_and_odd_images_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERZOO_DATA", str(tmp_path))
    folder = write_mirror(tmp_path, toy(), shards=1)
    rewrite(folder, lambda rows: rows[5]["img"].update(bytes=rows[5]["img"]["bytes"][:60]))
    with pytest.raises(DataError, match="split train: image 5 cannot be decoded"):
        load_images("c10", "train")
    other = io.BytesIO()
    Pillow.new("L", (9, 8)).save(other, "PNG")
    rewrite(folder, lambda rows: rows[5]["img"].update(bytes=other.getvalue()))
    with pytest.raises(DataError, match=r"24 images have 2 shapes .*\(3, 8, 8\), \(3, 8, 9\)"):
        load_images("c10", "train")
    pq.write_table(pq.read_table(next(folder.iterdir())).rename_columns(["picture", "label"]), next(folder.iterdir()))
    with pytest.raises(DataError, match=r"needs the columns img \(Image\) and label \(ClassLabel\); it has"):
        load_images("c10", "train")


def test_absent_data_never_falls_through_to_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERZOO_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(
        DataError, match=r"no train split: nothing matches .*train-\*-of-\*\.parquet \(there is no such"
    ):
        load_images("c10", "train")
    folder = tmp_path / "nowhere" / CIFAR
    folder.mkdir(parents=True)
    (folder / "readme.txt").touch()
    with pytest.raises(DataError, match=r"that folder holds readme\.txt"):
        load_images("c10", "train")
    with pytest.raises(DataError, match="c10 has no split 'validation'; it has train, test"):
        load_images("c10", "validation")
    with pytest.raises(UnknownNameError, match=r"no image data set 'c101'\. Closest: c10"):
        load_images("c101", "train")


def test_offline_without_a_mirror_names_both_remedies(monkeypatch):
    monkeypatch.delenv("HYPERZOO_DATA", raising=False)
    with pytest.raises(DataError, match="Go online without HF_HUB_OFFLINE, .* or set HYPERZOO_DATA to a folder with"):
        load_images("c10", "train")


def test_datasets_is_imported_only_to_decode(four_shards):
    """Without `datasets`: the import works, cached sets load, and decoding says what to install."""
    load_images("c10", "train")
    program = f"""
import sys
sys.modules['datasets'] = None
import hyperzoo.data
from huggingface_hub import constants
constants.HF_HOME = {constants.HF_HOME!r}
print(len(hyperzoo.data.load_images('c10', 'train')))
constants.HF_HOME += '-empty'
try:
    hyperzoo.data.load_images('c10', 'train')
except hyperzoo.errors.MissingExtraError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.startswith("24\n") and "pip install hyperzoo[train]" in out


# The embedded sample


def test_embedded_sample(data_mirror):
    """Within its terms, balanced, and with the fingerprints that its README states."""
    readme = (ASSETS / "README.md").read_text()
    assert 0 < sum(file.stat().st_size for file in data_mirror.rglob("*.parquet")) < 950_000
    for split, per_class in (("train", 13), ("test", 50)):
        images = load_images("c10", split)
        assert images.images.shape == (10 * per_class, 3, 32, 32)
        assert images.labels.bincount().tolist() == [per_class] * 10
        assert images.classes[:3] == ("airplane", "automobile", "bird")
        assert images.fingerprint in readme
        (file,) = (data_mirror / CIFAR).glob(f"{split}-*.parquet")
        first = pq.read_table(file)["img"][0]["bytes"].as_py()
        assert np.array_equal(images.images[0].permute(1, 2, 0), Pillow.open(io.BytesIO(first)).convert("RGB"))

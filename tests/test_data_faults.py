"""Every fault of the rows of a data set is one DataError, and nothing outside the files of the data set is read."""

import http.server
import io
import json
import struct
import threading
import zlib

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from PIL import Image as Pillow
from support.made_images import toy, write_mirror

from hyperzoo.data import load_images, load_text, sources
from hyperzoo.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hyperzoo"


@pytest.fixture
def shard(tmp_path, monkeypatch):
    """The one shard of a mirror of c10."""
    monkeypatch.setenv("HYPERZOO_DATA", str(tmp_path / "mirror"))
    return next(write_mirror(tmp_path / "mirror", toy(), shards=1).glob("*.parquet"))


def rewrite(file, change=lambda rows: None, schema=None, metadata=None):
    """Write a shard anew with changed rows, schema or metadata."""
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows)
    table = pa.Table.from_pylist(rows, schema=schema or table.schema)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, file)


def png(*size, mode="RGB"):
    Pillow.new(mode, size).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def chunked(kind, body):
    """A PNG with one more chunk of any content before its last."""
    content = png(8, 8)
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content[:33] + chunk + content[33:]


def bomb():
    """A PNG header that announces 60,000 x 60,000 pixels."""
    content, header = png(8, 8), struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]


BROKEN = {
    "empty": b"",
    "text": b"not an image",
    "cut": png(8, 8)[:40],
    "bomb": bomb(),
    "no zlib stream": png(8, 8).replace(b"IDAT", b"XDAT"),
    "compressed text": chunked(b"zTXt", b"a\0\1"),
    "color profile": chunked(b"iCCP", b"a\0\1"),
    "TIFF": b"II*\0\xff\xff\xff\xff" + bytes(40),
    "ICO": b"\0\0\1\0\1\0" + bytes(16),
    "WEBP": b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(20),
    "GIF": b"GIF89a\1\0\1\0\x80\0\0",
}


@pytest.mark.fault("image that cannot be decoded")
@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_cannot_be_decoded_is_named(shard, name):
    rewrite(shard, lambda rows: rows[5]["img"].update(bytes=BROKEN[name]))
    with pytest.raises(DataError, match="split train: image 5 cannot be decoded: "):
        load_images("c10", "train")


@pytest.mark.fault("image that cannot be decoded", 100)
def test_random_damage_is_a_data_error_or_an_image(shard):
    generator, content = torch.Generator().manual_seed(0), bytearray(png(8, 8))
    for _ in range(100):
        place = int(torch.randint(len(content), (), generator=generator))
        damaged = content.copy()
        damaged[place] = int(torch.randint(256, (), generator=generator))
        rewrite(shard, lambda rows, damaged=damaged: rows[5]["img"].update(bytes=bytes(damaged)))
        try:
            load_images("c10", "train")
        except DataError as error:
            assert "image 5" in str(error) or "2 shapes" in str(error)


@pytest.mark.fault("null in a data set")
@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda rows: rows[3].update(img=None), "row 3 has no image bytes"),
        (lambda rows: rows[3]["img"].update(bytes=None), "row 3 has no image bytes"),
        (lambda rows: rows[3].update(label=None), "row 3 has no label"),
    ],
)
def test_nulls_are_named(shard, change, fault):
    rewrite(shard, change)
    with pytest.raises(DataError, match=fault):
        load_images("c10", "train")


@pytest.mark.fault("data set that names a file outside")
def test_no_file_and_no_address_named_in_a_row_is_read(shard, tmp_path):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    (tmp_path / "secret.png").write_bytes(png(8, 8))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for path in (str(tmp_path / "secret.png"), f"http://127.0.0.1:{server.server_port}/x.png"):
            rewrite(shard, lambda rows, path=path: rows[3].update(img={"bytes": None, "path": path}))
            with pytest.raises(DataError, match=r"row 3 has no image bytes; a path or URL in its place is not read"):
                load_images("c10", "train")
        server.shutdown()
    assert asked == []


def test_labels_of_any_width_are_read(shard):
    schema = pq.read_schema(shard)
    for kind in (pa.int8(), pa.int32(), pa.uint16()):
        rewrite(shard, schema=schema.set(schema.get_field_index("label"), pa.field("label", kind)))
        found = load_images("c10", "train")
        assert torch.equal(found.labels, toy().labels) and found.fingerprint == toy().fingerprint


def features(**changes):
    """The metadata that `datasets` writes, with changes of the label column."""
    label = {"names": ["a", "b", "c"], "_type": "ClassLabel"} | changes
    return {"huggingface": json.dumps({"info": {"features": {"img": {"_type": "Image"}, "label": label}}})}


@pytest.mark.fault("damaged metadata of a data set")
@pytest.mark.parametrize(
    "metadata",
    [
        {"huggingface": "{"},
        {"huggingface": "null"},
        {"huggingface": "[]"},
        {"huggingface": '{"info": null}'},
        {"huggingface": '{"info": {"features": 3}}'},
        {"huggingface": b"\xff\xfe"},
        {"huggingface": "[" * 100_000},
        features(_type="Unheard"),
        features(names=[]),
        features(names=["a", "a", "b"]),
        features(names=[1, 2, 3]),
        features(names=None),
        features(names={"a": 1}),
        features(_type="Image"),
        {"other": "x"},
    ],
    ids=lambda metadata: str(metadata)[:60],
)
def test_damaged_metadata_are_a_data_error(shard, metadata):
    rewrite(shard, metadata=metadata)
    with pytest.raises(DataError):
        load_images("c10", "train")


@pytest.mark.fault("class names in another order")
def test_shards_with_other_class_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERZOO_DATA", str(tmp_path))
    folder = write_mirror(tmp_path, toy(), shards=2)
    rewrite(folder / "train-00001-of-00002.parquet", metadata=features(names=["b", "a", "c"]))
    with pytest.raises(
        DataError, match=r"train-00000-of-00002\S+ and \S+train-00001-of-00002\S+ have other class names"
    ):
        load_images("c10", "train")


@pytest.mark.fault("class names in another order", 2)
def test_splits_with_other_class_names_are_refused(shard):
    test = shard.with_name("test-00000-of-00001.parquet")
    test.write_bytes(shard.read_bytes())
    load_images("c10", "test")
    rewrite(test, metadata=features(names=["b", "a", "c"]))
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"(train|test)-0\S+ and \S+(test|train)-0\S+ have other class names"):
            load_images("c10", split)
    test.write_bytes(b"damaged")
    assert load_images("c10", "train").classes == ("a", "b", "c")


@pytest.mark.fault("class names in another order", 2)
def test_class_names_in_the_cache_are_protected(shard, cache):
    load_images("c10", "train")
    (file,) = cache.iterdir()
    good = file.read_bytes()
    for old, new in ((rb"\"a\", \"b\"", rb"\"b\", \"a\""), (rb"\"a\"", rb"\"q\"")):
        assert old in good
        file.write_bytes(good.replace(old, new))
        with pytest.warns(UserWarning, match="is damaged .*class names have changed.*decoding"):
            assert load_images("c10", "train").classes == ("a", "b", "c")


@pytest.mark.fault("shard count beyond all bounds")
def test_a_huge_count_of_shards_is_one_sentence(shard):
    shard.rename(shard.with_name("train-00000-of-100000000000.parquet"))
    with pytest.raises(DataError, match=r"lacks shards train-00001-of-100000000000\.parquet, .*, \.\.\. \(found 1 of"):
        load_images("c10", "train")


def test_an_empty_variable_counts_as_not_set(monkeypatch, tmp_path):
    monkeypatch.chdir(write_mirror(tmp_path, toy()).parents[2])
    monkeypatch.setenv("HYPERZOO_DATA", "")
    with pytest.raises(DataError, match="on the Hub, split train, could not be read"):
        load_images("c10", "train")


@pytest.mark.fault("null in a data set")
@pytest.mark.fault("text that is not UTF-8")
def test_lines_that_are_not_text_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERZOO_DATA", str(tmp_path))
    place = sources.TEXT_REPOSITORIES["wt2"]
    folder = tmp_path / place.hub_id / place.config
    folder.mkdir(parents=True)
    file = folder / "train-00000-of-00001.parquet"
    pq.write_table(pa.table({"text": ["a b", None]}), file)
    with pytest.raises(DataError, match="split train: line 1 is null"):
        load_text("wt2", "train")
    broken = pc.cast(pa.array([b"a b", b"\xff\xfe"]), pa.binary())
    column = pa.Array.from_buffers(pa.string(), 2, broken.buffers())
    pq.write_table(pa.table({"text": column}), file)
    with pytest.raises(DataError, match="split train: .*not UTF-8"):
        load_text("wt2", "train")

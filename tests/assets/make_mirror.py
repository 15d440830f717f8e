"""Write tests/assets/mirror, the embedded sample of CIFAR-10, from the full mirror that HYPERZOO_DATA names.

Same layout, columns and features as the Hub. Test: the first 50 images of each class. Train: of each class the images
with the smallest files, as many as fit. Both leave out the images that the full mirror holds only as JPEG, and keep the
original order. Equal bytes are promised for the versions named in README.md only, equal pixels for all.
"""

import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

MIRROR = Path(__file__).parent / "mirror"
CIFAR = Path("uoft-cs", "cifar10")
LIMIT_BYTES = 950_000
TEST_PER_CLASS = 50


def read_split(split: str) -> tuple[pa.Table, list[set[int]]]:
    """The rows of a split, and for each class the indices of its exact images."""
    folder = Path(os.environ["HYPERZOO_DATA"]) / CIFAR
    rows = pa.concat_tables(
        [pq.read_table(path) for path in sorted((folder / "plain_text").glob(f"{split}-*.parquet"))]
    )
    inexact = set(json.loads((folder / "jpeg_fallback_indices.json").read_text())[split])
    labels = rows["label"].to_pylist()
    return rows, [{i for i, label in enumerate(labels) if label == k and i not in inexact} for k in range(10)]


def encode(data: bytes) -> bytes:
    """The shortest lossless WebP of an image that Pillow writes with any of its efforts."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    shortest = None
    for method in range(7):
        for quality in (0, 25, 50, 75, 100):
            file = io.BytesIO()
            image.save(file, "WEBP", lossless=True, quality=quality, method=method)
            if shortest is None or len(file.getvalue()) < len(shortest):
                shortest = file.getvalue()
    if Image.open(io.BytesIO(shortest)).convert("RGB").tobytes() != image.tobytes():
        raise RuntimeError("the encoder is not lossless")
    return shortest


def write(split: str, rows: pa.Table, encoded: dict[int, bytes], indices: list[int]) -> int:
    """Write one shard with the given rows in their original order; return its size in bytes."""
    path = MIRROR / CIFAR / "plain_text" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = sorted(indices)
    images = [{"bytes": encoded[i], "path": None} for i in chosen]
    table = pa.table([images, rows["label"].take(chosen).combine_chunks()], schema=rows.schema)
    pq.write_table(
        table, path, compression="brotli", compression_level=11, use_dictionary=False, write_statistics=False
    )
    return path.stat().st_size


def main() -> None:
    rows, by_class = read_split("test")
    chosen = [i for members in by_class for i in sorted(members)[:TEST_PER_CLASS]]
    used = write("test", rows, {i: encode(rows["img"][i]["bytes"].as_py()) for i in chosen}, chosen)
    print(f"test: {len(chosen)} images, {used} bytes")

    rows, by_class = read_split("train")
    files = [image["bytes"] for image in rows["img"].to_pylist()]
    ranked = [sorted(members, key=lambda i: (len(files[i]), i)) for members in by_class]
    encoded: dict[int, bytes] = {}
    fitting: list[int] = []
    while True:
        wanted = len(fitting) // 10 + 1
        chosen = [i for members in ranked for i in members[:wanted]]
        encoded.update({i: encode(files[i]) for i in chosen if i not in encoded})
        if used + write("train", rows, encoded, chosen) > LIMIT_BYTES:
            break
        fitting = chosen
    print(f"train: {len(fitting)} images, {write('train', rows, encoded, fitting)} bytes")


if __name__ == "__main__":
    main()

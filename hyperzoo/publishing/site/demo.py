"""The parts of the demo: ONNX Runtime Web, a network as ONNX, and sample images."""

import base64
import gzip
import hashlib
import io
import logging
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from hyperzoo import data, names, zoo
from hyperzoo.errors import SiteError
from hyperzoo.publishing.checkout import Checkout
from hyperzoo.publishing.export import export
from hyperzoo.zoo.weight_description import WeightInfo

ARCH = "fast_cnn8"
RUNTIME_VERSION = "1.30.0"
RUNTIME_INTEGRITY = (  # of the npm package, as `npm view onnxruntime-web@1.30.0 dist.integrity` prints it
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
RUNTIME_FILES = {"runtime": "ort.wasm.bundle.min.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}
_FETCH_S = 600
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleImage:
    """A sample image as a data: URL, and its label."""

    picture: str
    label: str


@dataclass(frozen=True)
class Demo:
    """Everything that the page embeds for its demo.

    Attributes:
        facts: metadata of the ONNX file, see `export`.
        parts: JavaScript module and WebAssembly of the runtime, and the ONNX file; base64 of gzip, by element id.
    """

    info: WeightInfo
    facts: dict[str, Any]
    samples: tuple[SampleImage, ...]
    parts: dict[str, str]
    runtime_version: str = RUNTIME_VERSION


def png_url(content: bytes) -> str:
    """A PNG as a data: URL."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def build(runtime: Path | None, checkout: Checkout | None, report: Callable[[str], None] = _logger.info) -> Demo:
    """Collect the demo of the default weight of `ARCH`.

    Args:
        runtime: npm package onnxruntime-web of `RUNTIME_VERSION` as .tgz [default: download with npm].
        checkout: source of the sample images; with None there are none.
        report: called with one line before each step.
    Raises:
        SiteError: the package is not available, or its bytes do not match `RUNTIME_INTEGRITY`.
        MissingExtraError: the extras [export] or, for the sample images, [train] are not installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report(f"demo: ONNX Runtime Web {RUNTIME_VERSION}, {f'from {runtime}' if runtime else 'with npm pack'}")
        parts = _runtime(runtime or _fetch(Path(scratch)))
        report(f"demo: {ARCH} to ONNX")
        exported = export(ARCH, Path(scratch) / "model.onnx")
        parts["model"] = exported.file.read_bytes()
    packed = {name: base64.b64encode(gzip.compress(part, mtime=0)).decode() for name, part in parts.items()}
    info = zoo.weight_info(ARCH)
    samples = _samples(names.parse(info.name).dataset, checkout) if checkout else ()
    return Demo(info, exported.metadata, samples, packed)


def _fetch(folder: Path) -> Path:
    """Download the package with npm, or take it from npm's cache."""
    package = f"onnxruntime-web@{RUNTIME_VERSION}"
    remedy = f"run `npm pack {package}` on any machine and pass the file with --runtime FILE"
    npm = shutil.which("npm")
    if npm is None:
        raise SiteError(f"npm, which downloads ONNX Runtime Web for the demo, is not installed. Without npm, {remedy}")
    command = [npm, "pack", package, "--prefer-offline", "--fetch-retries=1", "--loglevel=error"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_FETCH_S)
        (found,) = folder.glob("*.tgz")
    except subprocess.CalledProcessError as error:
        raise SiteError(f"npm could not download {package}: {error.stderr.strip()}. Instead, {remedy}") from error
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise SiteError(f"npm could not download {package}: {error}. Instead, {remedy}") from error
    return found


def _runtime(package: Path) -> dict[str, bytes]:
    """The files of the runtime, after the integrity of the package was checked."""
    try:
        content = package.read_bytes()
    except OSError as error:
        raise SiteError(f"cannot read the package of ONNX Runtime Web: {error}") from error
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != RUNTIME_INTEGRITY:
        raise SiteError(
            f"{package} ({len(content)} bytes) has integrity {found}; expected {RUNTIME_INTEGRITY}, that of "
            f"onnxruntime-web {RUNTIME_VERSION}. `npm pack onnxruntime-web@{RUNTIME_VERSION}` downloads it."
        )
    files = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for part, file in RUNTIME_FILES.items():
            stream = archive.extractfile(f"package/dist/{file}")
            assert stream is not None, "a package with this integrity has the file"
            files[part] = stream.read()
    return files


def _samples(code: str, checkout: Checkout) -> tuple[SampleImage, ...]:
    """The first test image of each class in the embedded sample of a data set; none is hand-picked."""
    images = data.load_split(code, "test", checkout.mirror)
    assert isinstance(images, data.ImageSet), "the demo has small images"
    firsts = [int((images.labels == label).nonzero()[0]) for label in range(len(images.classes))]
    return tuple(
        SampleImage(png_url(_png(images.images[first])), label)
        for first, label in zip(firsts, images.classes, strict=True)
    )


def _png(image: Tensor) -> bytes:
    stream = io.BytesIO()
    to_pil_image(image).save(stream, "png")
    return stream.getvalue()

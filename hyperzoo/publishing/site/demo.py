"""What the page needs to run a network by itself: ONNX Runtime Web, the network as ONNX, and pictures to try."""

import base64
import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from hyperzoo import data, names, zoo
from hyperzoo.errors import SiteError
from hyperzoo.publishing.checkout import Checkout
from hyperzoo.publishing.export import export
from hyperzoo.zoo.manifest import WeightInfo

ARCH = "spherenet20"
RUNTIME_VERSION = "1.30.0"
RUNTIME_INTEGRITY = (  # of the npm package, as `npm view onnxruntime-web@1.30.0 dist.integrity` prints it
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
RUNTIME_FILES = {"runtime": "ort.wasm.bundle.min.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}
_FETCH_S = 600


@dataclass(frozen=True)
class Sample:
    """A picture to try, as a data: URL, and its label."""

    picture: str
    label: str


@dataclass(frozen=True)
class Demo:
    """All that the page embeds for its demo.

    facts: what the ONNX file says about itself, see `export`.
    parts: by the id of their element, gzip in base64: the module and the WebAssembly of the runtime, the ONNX file.
    """

    info: WeightInfo
    facts: dict[str, Any]
    samples: tuple[Sample, ...]
    parts: dict[str, str]
    runtime_version: str = RUNTIME_VERSION


def png_url(content: bytes) -> str:
    """A picture as a URL that holds it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def build(runtime: Path | None, place: Checkout | None) -> Demo:
    """Collect the demo of the default weight of `ARCH`.

    Args:
        runtime: the npm package onnxruntime-web of `RUNTIME_VERSION`, a .tgz; fetched with npm without it.
        place: a checkout, for the pictures; without it the visitor brings one.
    Raises:
        SiteError: the package is not within reach, or has other bytes than `RUNTIME_INTEGRITY` says.
        MissingExtraError: the packages of [export], or for the pictures of [train], are not installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        parts = _runtime(runtime or _fetch(Path(scratch)))
        exported = export(ARCH, Path(scratch) / "model.onnx", "onnx")
        parts["model"] = exported.file.read_bytes()
    packed = {name: base64.b64encode(gzip.compress(part, mtime=0)).decode() for name, part in parts.items()}
    info = zoo.weight_info(ARCH)
    samples = _samples(names.parse(info.name).dataset, place) if place else ()
    return Demo(info, exported.metadata, samples, packed)


def _fetch(folder: Path) -> Path:
    """Download the package with npm, which takes it from its own cache where it can."""
    package = f"onnxruntime-web@{RUNTIME_VERSION}"
    remedy = f"`npm pack {package}` on any machine, then --runtime FILE"
    npm = shutil.which("npm")
    if npm is None:
        raise SiteError(f"npm is not installed, and fetches ONNX Runtime Web for the demo. Without it: {remedy}")
    command = [npm, "pack", package, "--prefer-offline", "--fetch-retries=1", "--loglevel=error"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_FETCH_S)
        (found,) = folder.glob("*.tgz")
    except subprocess.CalledProcessError as error:
        raise SiteError(f"npm could not fetch {package}: {error.stderr.strip()}. Other way: {remedy}") from error
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise SiteError(f"npm could not fetch {package}: {error}. Other way: {remedy}") from error
    return found


def _runtime(package: Path) -> dict[str, bytes]:
    """The files of the runtime, after the package was found to have the bytes that are expected of it."""
    try:
        content = package.read_bytes()
    except OSError as error:
        raise SiteError(f"cannot read the package of ONNX Runtime Web: {error}") from error
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != RUNTIME_INTEGRITY:
        raise SiteError(
            f"{package} ({len(content)} bytes) has integrity {found}; onnxruntime-web {RUNTIME_VERSION} has "
            f"{RUNTIME_INTEGRITY}. `npm pack onnxruntime-web@{RUNTIME_VERSION}` fetches it."
        )
    files = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for part, file in RUNTIME_FILES.items():
            stream = archive.extractfile(f"package/dist/{file}")
            assert stream is not None, "a package of that integrity holds it"
            files[part] = stream.read()
    return files


def _samples(code: str, place: Checkout) -> tuple[Sample, ...]:
    """The first test image of each class in the embedded sample of a data set: nothing is chosen."""
    images = data.load_split(code, "test", place.mirror)
    assert isinstance(images, data.ImageSet), "the network of the demo takes small pictures"
    firsts = [int((images.labels == label).nonzero()[0]) for label in range(len(images.classes))]
    return tuple(
        Sample(png_url(_png(images.images[first])), label) for first, label in zip(firsts, images.classes, strict=True)
    )


def _png(image: Tensor) -> bytes:
    stream = io.BytesIO()
    to_pil_image(image).save(stream, "png")
    return stream.getvalue()

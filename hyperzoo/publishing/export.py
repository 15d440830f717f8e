"""A network as one file that runs without hyperzoo: a `torch.export` program, or ONNX.

The bytes are opened again and compared with the network before a file is touched.
"""

import copy
import importlib.util
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from hyperzoo import __version__, names, zoo
from hyperzoo.errors import ExportError, InputError, MissingExtraError
from hyperzoo.files import sha256, write_whole
from hyperzoo.layers import fold
from hyperzoo.publishing.checkout import find_checkout
from hyperzoo.publishing.verify import agree, golden_input
from hyperzoo.zoo.weight_files import check_file

EXTRA_FILE = "hyperzoo.json"  # the metadata inside a program
FREE_BATCH = ({0: torch.export.Dim("batch")},)

Runs = Callable[[Tensor], Tensor]


class Exported(NamedTuple):
    """The file, its metadata, and the largest difference between its outputs and the reference."""

    file: Path
    metadata: dict[str, Any]
    difference: float


class Format(NamedTuple):
    """How to turn a network into bytes and how to run them; `packages` are the optional packages for it."""

    name: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, dict[str, Any]], bytes]
    open: Callable[[bytes], Runs]


def export(name: str, out: Path) -> Exported:
    """Write a network as one file for programs without hyperzoo, after checking the outputs of that file.

    For batches of several sizes, the outputs are compared with the golden outputs if the weight is published and this
    is a checkout, and otherwise with those of the loaded network. The tolerance is that of outputs on other CPUs plus
    the rounding error of the network, measured against float64. The batch size is free. The length of a text is not: it
    is `input_size` in the metadata; pad shorter texts at the end, which does not change the outputs before the padding.
    The file carries class names, normalization and the hash of the weight: ONNX as `metadata_props` (JSON, except plain
    strings), a program as an extra file, `torch.export.load(out, extra_files={'hyperzoo.json': ''})`.

    Args:
        name: a weight, an architecture for its default weight, or a folder, such as a run folder; see `hyperzoo.load`.
        out: its suffix is the format: .pt2 for a program, which `torch.export.load(out).module()` runs, .onnx for ONNX;
            an existing file is replaced.
    Raises:
        InputError: another suffix. MissingExtraError: packages of the extra [export] are missing.
        ExportError: the format lacks an operator of the network, the outputs differ, or `out` cannot be written.
        UnknownNameError, WeightHashError, WeightFileError, ...: see `hyperzoo.load`.
    """
    out = Path(out)
    form = _format(out)
    model, metadata, golden = _network(name)
    if golden is None:
        x = golden_input(model)
        with torch.inference_mode():
            golden = {"input": x, "output": model(x)}
    x, y = golden["input"], golden["output"]
    if not x.is_floating_point():  # recurrent layers are unrolled over the steps
        x = F.pad(x, (0, metadata["input_size"][0] - x.shape[1]))
    cases = [(x, y), (torch.cat([x, x]), torch.cat([y, y])), (x[:1], y[:1])]
    what = f"{name} as {form.name}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its own internals
            content = form.write(fold(model), torch.cat([x, x]), metadata)
            run = form.open(content)
            with torch.no_grad():
                found = [run(batch)[:, : wanted.shape[1]] for batch, wanted in cases]
    except Exception as error:  # each exporter and each runtime has its own errors
        raise ExportError(f"cannot export {what}: {_first_cause(error)}") from error
    pairs = [(got, wanted) for got, (_, wanted) in zip(found, cases, strict=True)]
    difference = max(float((got - wanted).abs().max()) for got, wanted in pairs)
    rounding = 2 * _rounding(model, x)
    if not all(agree(got, wanted, rounding) for got, wanted in pairs):
        raise ExportError(f"{what} gives other outputs than the network: largest difference {difference:.1e}")
    try:
        write_whole({out: content})
    except OSError as error:
        raise ExportError(f"cannot write {out}: {error}") from error
    return Exported(out, metadata, difference)


def _rounding(model: nn.Module, x: Tensor) -> float:
    """Largest difference from the outputs in float64; deep networks without shortcuts amplify rounding."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        wide = exact(x.double() if x.is_floating_point() else x)
        return float((model(x) - wide).abs().max())


def _format(out: Path) -> Format:
    if out.suffix not in FORMATS:
        known = " or ".join(f"{suffix} ({form.name})" for suffix, form in FORMATS.items())
        raise InputError(f"{out} must end in {known}; got {out.suffix or 'no suffix'}")
    form = FORMATS[out.suffix]
    if missing := [package for package in form.packages if importlib.util.find_spec(package) is None]:
        raise MissingExtraError(f'{form.name} needs {" and ".join(missing)}: pip install "hyperzoo[export]"')
    if not out.absolute().parent.is_dir():
        raise ExportError(f"cannot write {out}: the folder {out.absolute().parent} does not exist")
    return form


def _network(name: str) -> tuple[nn.Module, dict[str, Any], dict[str, Tensor] | None]:
    """The network in evaluation mode, the metadata of its file, and its golden tensors if there are any."""
    if folder := zoo.local_folder(name):
        model = zoo.any_network(name)
        digest = sha256(folder / "model.safetensors")
        return model, _metadata(model, zoo.class_names(folder), sha256=digest), None
    loaded = zoo.load(name)
    info, checkout = zoo.weight_info(name), find_checkout()
    metadata = _metadata(
        loaded.model,
        loaded.classes,
        name=info.name,
        license=info.license,
        sha256=info.files["model.safetensors"],
    )
    golden = checkout.golden(info.name) if checkout else None
    if not (golden and golden.is_file()):
        return loaded.model, metadata, None
    check_file(golden)
    return loaded.model, metadata, load_file(golden)


def _metadata(model: nn.Module, classes: tuple[str, ...], **stated: str) -> dict[str, Any]:
    """Metadata as JSON values: the stated ones, the class names, and the preprocessing in timm's terms."""
    cfg: Any = model.pretrained_cfg
    arch = cfg["architecture"]
    values: dict[str, Any] = {**stated, "architecture": arch, "hyperzoo": __version__, "label_names": classes}
    if names.is_language(arch):
        values["input_size"] = cfg["input_size"][-1:]
    else:
        config = timm.data.resolve_model_data_config(model)
        values |= {key: config[key] for key in ("input_size", "mean", "std", "crop_pct", "interpolation")}
    return json.loads(json.dumps(values))


def _write_torch(model: nn.Module, x: Tensor, metadata: dict[str, Any]) -> bytes:
    program = torch.export.export(model, (x,), dynamic_shapes=FREE_BATCH)
    program.example_inputs = None  # torch would store them as a pickle
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={EXTRA_FILE: json.dumps(metadata, indent=2)})
    return content.getvalue()


def _open_torch(content: bytes) -> Runs:
    return torch.export.load(io.BytesIO(content)).module()


def _write_onnx(model: nn.Module, x: Tensor, metadata: dict[str, Any]) -> bytes:
    program = torch.onnx.export(
        model,
        (x,),
        dynamo=True,
        dynamic_shapes=FREE_BATCH,
        input_names=["images" if x.is_floating_point() else "tokens"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None, "dynamo=True returns a program"
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # contains stack traces with paths of this machine
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    program.model.metadata_props.update(texts)
    return program.model_proto.SerializeToString()


def _open_onnx(content: bytes) -> Runs:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    return lambda x: torch.from_numpy(session.run(None, {argument.name: x.numpy()})[0])


FORMATS = {
    ".pt2": Format("torch", (), _write_torch, _open_torch),
    ".onnx": Format("onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _open_onnx),
}


def _first_cause(error: BaseException) -> str:
    """The first line of the error at the start of a chain."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""Build model, loss, terms and batches from a recipe."""

import shutil
from functools import partial
from typing import Any

import timm
import torch
from accelerate import Accelerator, PartialState
from torch import nn

import hyperzoo.models  # noqa: F401  registers the architectures, also in processes that the command spawns
from hyperzoo import data, losses, names, regularizers, zoo
from hyperzoo.data import subset
from hyperzoo.data.load import Images, Samples
from hyperzoo.errors import HyperzooError, RecipeError, WeightUnavailableError
from hyperzoo.experiments import pretrained
from hyperzoo.experiments.model_args import angles, own_args
from hyperzoo.layers import whiten_
from hyperzoo.layers._torch import cpu_computes_bf16
from hyperzoo.layers.sphere import SphereConv2d, SphereLinear
from hyperzoo.mixup import CutMix, ManifoldMixup, Mixup
from hyperzoo.models import sphereized
from hyperzoo.training.loop import Batches
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.recipe_data import Data
from hyperzoo.training.step import Mixing, Precision, Term, TrainStep
from hyperzoo.training.text_step import TextStep

TERMS: dict[str, Any] = {
    "mhe": regularizers.MHE,
    "orthogonality": regularizers.Orthogonality,
    "minimum_angle": regularizers.MinimumAngle,
    "per": regularizers.PER,
    "vcl": regularizers.VCL,
    "activation_norm": regularizers.ActivationNorm,
}
WHITENING_IMAGES = 5000  # the first training images; more change the filters in the third digit
COMPILE_PAYS_AFTER_UPDATES = 2000  # compiling takes about a minute


def precision(recipe: Recipe) -> Precision:
    """'bf16' or 'fp32'; `auto` is bf16 if the hardware computes in it, and fp32 if it would emulate it."""
    if recipe.train.precision != "auto":
        return recipe.train.precision
    if PartialState().device.type == "cuda":  # ACCELERATE_USE_CPU may leave a GPU aside
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if cpu_computes_bf16() else "fp32"


def compiles(recipe: Recipe, network: nn.Module, updates: int, device: torch.device) -> tuple[bool, str]:
    """Whether to compile the network, and the reason as a sentence.

    The compiler fuses the operations of sphere layers around their convolutions. Networks of torch's own layers spend
    their time in oneDNN's convolutions; they were 10 % slower compiled, on two cores with AVX2 in float32.
    """
    setting = recipe.train.compile
    if setting != "auto":
        return setting == "on", f"compile: {setting}, as the recipe says"
    if names.is_language(recipe.model.arch):
        return False, "running eager: torch's LSTM needs no compilation"
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return False, "running eager: no C++ compiler was found"
    if updates < COMPILE_PAYS_AFTER_UPDATES:
        return False, f"running eager: {updates} updates are too few to pay for the compilation"
    if device.type == "cpu" and precision(recipe) == "fp32":
        if not any(isinstance(module, SphereConv2d | SphereLinear) for module in network.modules()):
            return False, "running eager: without sphere layers, compiling saves nothing on this processor"
    return True, "compiling the model; the first step takes a minute or so"


def model(recipe: Recipe, classes: tuple[str, ...] | int, channels: int) -> nn.Module:
    """The network at the start of the run, with the number of outputs and input channels of the data.

    With `model.pretrained` it has the weights of that network, and a new classifier unless the names of its classes are
    those of the data. `model.sphereize` and `method.angular` replace layers, and `model.freeze` excludes parameters
    from the training.

    Args:
        classes: the class names, or only their number.
    Raises:
        RecipeError: the architecture does not take `model.args`, a pattern of `model.freeze` matches nothing, or
            `model.sphereize` with `model.pretrained`.
        InputError: nothing for `model.sphereize`, or for `method.angular` no single linear classifier.
    """
    arch, args, pretrained_name = recipe.model.arch, recipe.model.args, pretrained.start(recipe)
    outputs = classes if isinstance(classes, int) else len(classes)
    sizes: dict[str, Any] = dict(num_classes=outputs, in_chans=channels, **own_args(recipe))
    try:
        if pretrained_name:
            network = zoo.any_network(pretrained_name, pretrained=True, **sizes)
        else:
            network = timm.create_model(arch, **sizes)
    except Exception as error:  # constructors raise any kind for arguments that they do not take
        if pretrained_name and isinstance(error, OSError) and not isinstance(error, HyperzooError):
            raise WeightUnavailableError(
                f"the weight {pretrained_name} of timm is not cached and cannot be downloaded ({error}). Go online, or "
                "set model.pretrained to a weight of hyperzoo or a run folder"
            ) from error
        if isinstance(error, HyperzooError) or not args:
            raise
        raise RecipeError(f"model.args of {arch}: {args} do not fit ({type(error).__name__}: {error})") from error
    if pretrained_name and classes != pretrained.class_names(pretrained_name):
        pretrained.renew_classifier(network, pretrained_name, recipe.train.seed)
    if replaced := angles(recipe):
        if pretrained_name and "sphereize" in replaced:
            raise RecipeError(
                f"model.sphereize: the filters and batch statistics of {pretrained_name} are those of inner products, "
                "so the converted network would be evaluated wrongly; remove model.pretrained, or model.sphereize"
            )
        sphereized.convert(network, **replaced)
    if recipe.model.freeze:
        pretrained.freeze(network, recipe.model.freeze)
    return network


def initialize(recipe: Recipe, network: nn.Module, train: "Samples") -> None:
    """Data-dependent initialization, in place: with `model.init: whiten`, `whiten_` of the first convolution, which
    timm's description of the network names, on the first training images.

    Raises:
        RecipeError: images that are not held in memory. InputError: a convolution that cannot be whitened.
    """
    if recipe.model.init is None:
        return
    if not isinstance(train, data.ImageSet):
        raise RecipeError(f"model.init {recipe.model.init} needs images in memory; {recipe.data.name} is streamed")
    config = timm.data.resolve_model_data_config(network)
    normalize = data.Normalize(train.channels, config["mean"], config["std"])
    name: str = network.pretrained_cfg["first_conv"]  # type: ignore[index, assignment]
    whiten_(network.get_submodule(name), normalize(train.images[:WHITENING_IMAGES]))  # type: ignore[arg-type]


def step(recipe: Recipe, network: nn.Module) -> TrainStep:
    """The training step of a recipe: model, loss, terms and mixing. `method.angular` replaces the classifier."""
    method, classes = recipe.method, int(network.num_classes)  # type: ignore[arg-type]
    smoothing = method.label_smoothing
    angular: losses.AngularSoftmax | None = None
    if method.angular:
        values = method.angular.model_dump()
        angular = losses.AngularSoftmax(**values, label_smoothing=smoothing, accumulate=recipe.train.accumulate)
        losses.replace_classifier(network, angular)  # before the terms, which search for the classifier
    terms: dict[str, Term] = {
        name: term(network, **block.model_dump())
        for name, term in TERMS.items()
        if (block := getattr(method, name)) is not None
    }
    if names.is_language(recipe.model.arch):
        criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
        return TextStep(network, criterion, terms, parts=recipe.train.accumulate, precision=precision(recipe))
    make = partial(TrainStep, network, terms=terms, precision=precision(recipe))
    if angular:
        return make(angular, angular=True)
    mixing: Mixing | None = None
    if method.mixup:
        mixing = (CutMix if method.mixup.cutmix else Mixup)(classes, alpha=method.mixup.alpha, smoothing=smoothing)
    elif method.manifold_mixup:
        mixing = ManifoldMixup(network, classes, smoothing=smoothing, **method.manifold_mixup.model_dump())
    if mixing:
        return make(losses.SoftTarget(method.soft_target), mixing=mixing)
    return make(nn.CrossEntropyLoss(label_smoothing=smoothing))


def dataset(recipe: Recipe) -> str | data.OwnImages:
    """The data set of a recipe: its code, or your own images, located and checked.

    Raises:
        DataError, RecipeError, UnknownNameError: see `data.find_own` and `pretrained.start`.
    """
    source = recipe.data.source
    if source is None:
        return recipe.data.name
    about = pretrained.description(recipe)
    size = recipe.data.size_px or recipe.model.args.get("img_size") or about["input_size"][-1]
    fit = data.Fit(int(size), about["interpolation"], skip=recipe.data.on_error == "skip")  # type: ignore[arg-type]
    return data.find_own(source.model_dump(), recipe.data.name, fit)


def samples(recipe: Recipe, where: str | data.OwnImages | None = None) -> tuple[Samples, Samples | None]:
    """The training split and the validation data of each epoch: held-out images, or the validation split of a text or
    of your own images.

    Args:
        where: the data set [default: `dataset(recipe)`].
    """
    if recipe.data.is_text:
        return data.load_split(recipe.data.name, "train"), data.load_split(recipe.data.name, "validation")
    return images(recipe, where)


def images(recipe: Recipe, where: str | data.OwnImages | None = None) -> tuple[Images, Images | None]:
    """The training images and the validation images.

    Keys of `data` that leave out training images or replace labels act after the validation images were held out.

    Raises:
        RecipeError: data.resize_px does not end at the size of the images; data.size_px for streamed images;
            data.hold_out takes all images of a class; less than a batch is left.
        InputError: a class has fewer images than data.per_class.   UnknownNameError: no class of data.keep.
    """
    where = dataset(recipe) if where is None else where
    settings, size_px, held = recipe.data, None, None
    train: Images
    if isinstance(where, data.OwnImages):
        train = where.load("train")
        _check_last_size(settings, where.fit.size_px, "set data.size_px to that")
        if "validation" in where.splits and not settings.hold_out:
            held = where.like(train.channels).load("validation")
    else:
        train, size_px = data.load_images(where, "train"), settings.size_px
        if isinstance(train, data.ImageSet):
            remedy = "resize all images by data.size_px with data.hold_out"
            _check_last_size(settings, size_px or train.images.shape[-1], remedy)
        elif size_px:
            raise RecipeError(f"data.size_px resizes images in memory, but {settings.name} is streamed; remove it")
    if settings.hold_out:
        train, held = _held_out(train, settings.hold_out)
    train = _training_part(train, settings)
    if size_px and isinstance(train, data.ImageSet):  # last, because a part is resized sooner than all images
        train, held = train.resized(size_px), held.resized(size_px) if isinstance(held, data.ImageSet) else None
    return train, held


def _check_last_size(settings: Data, size_px: int, remedy: str) -> None:
    """Raise RecipeError unless data.resize_px ends at the size of the evaluation."""
    sizes = settings.resize_px
    if sizes and (last := sizes[max(sizes)]) != size_px:
        raise RecipeError(
            f"data.resize_px ends at {last} px, but {settings.name} is evaluated at {size_px}; end it at {size_px}, or "
            f"{remedy}"
        )


def _held_out(train: Images, count: int) -> tuple[Images, Images]:
    """The other training images, and `count` validation images."""
    rest, held = train.hold_out(count)
    for name, size, left in zip(train.classes, subset.sizes(train), subset.sizes(rest), strict=True):
        if size and not left:
            raise RecipeError(
                f"data.hold_out {count} leaves no training image of the class {name!r}, which has {size}; hold out "
                "fewer"
            )
    return rest, held


def _training_part(train: Images, settings: Data) -> Images:
    """The training images that the recipe leaves, with its noise in their labels."""
    seed, tail = settings.keep_seed, subset.long_tail(train.classes, settings.long_tail)
    if settings.fraction < 1:
        train = subset.thin(train, dict.fromkeys(train.classes, settings.fraction), seed)
    if settings.per_class:
        train = subset.per_class(train, settings.per_class, seed)
    if (settings.fraction < 1 or settings.per_class) and len(train) < settings.batch_size:
        raise RecipeError(
            f"data.{'per_class' if settings.per_class else 'fraction'} leaves {len(train)} training images, fewer than "
            f"data.batch_size {settings.batch_size}; set data.batch_size to {len(train)} or less"
        )
    if settings.keep or settings.long_tail > 1:
        train = subset.thin(train, settings.keep or tail, seed)
    return subset.label_noise(train, settings.label_noise, seed) if settings.label_noise else train


def batches(recipe: Recipe, train: Samples, network: nn.Module, engine: Accelerator) -> Batches:
    """The training batches of this process, on its device.

    Raises:
        RecipeError: data.batch_size does not divide by the processes and train.accumulate; a key that streamed images
            do not have.
    """
    parts = engine.num_processes * recipe.train.accumulate
    if recipe.data.batch_size % parts:
        raise RecipeError(
            f"data.batch_size {recipe.data.batch_size} must be a multiple of {parts}: {engine.num_processes} "
            f"process(es), with train.accumulate {recipe.train.accumulate} parts each; change one of them"
        )
    common: dict[str, Any] = dict(
        batch_size=recipe.data.batch_size,
        device=engine.device,
        rank=engine.process_index,
        processes=engine.num_processes,
    )
    if isinstance(train, data.TextSet):
        return data.TextBatches(train, length=recipe.data.length, **common)
    config = timm.data.resolve_model_data_config(network)
    common |= dict(seed=recipe.train.seed, flip=recipe.data.flip, mean=config["mean"], std=config["std"])
    if isinstance(train, data.StreamedSet):
        if recipe.data.flip == "alternating":
            raise RecipeError(f"data.flip alternating needs images in memory, but {train.name} is streamed; set true")
        size, area, workers = config["input_size"][-1], recipe.data.min_area, recipe.data.workers
        return data.StreamedBatches(train, size_px=size, area=area, workers=workers, **common)
    crops: dict[str, Any] = dict(crop_px=recipe.data.crop_px, pad_mode=recipe.data.border)
    return data.ImageBatches(train, cutout_px=recipe.data.cutout_px, **crops, **common)

"""A saved model opens in timm and in transformers, and reads back as it was saved."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

import hyperzoo
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.model_folder import save_model

ARCH, ARGS = "plain_cnn3", dict(widths=(4, 6, 8))


def saved(folder, classes=("a", "b", "c"), **args):
    model = timm.create_model(ARCH, num_classes=len(classes), **ARGS, **args).eval()
    save_model(model, folder, classes=tuple(classes), args=ARGS)
    return model


def as_transformers(folder, config):
    """The network that transformers' TimmWrapper builds: `num_classes` and `model_args` go to one call."""
    return timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])


@pytest.mark.parametrize("name", ["saved", *weight_files.MANIFEST.bundled()])
def test_transformers_and_timm_build_the_network_of_a_folder(tmp_path, name):
    if name == "saved":
        saved(tmp_path, in_chans=1)
    folder = tmp_path if name == "saved" else weight_files.MANIFEST.folder(name)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    classes = len(hyperzoo.zoo.class_names(folder))
    assert config["num_classes"] == classes and "num_classes" not in config["model_args"]
    as_transformers(folder, config).load_state_dict(tensors)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert again.num_classes == classes
    assert all(torch.equal(value, tensors[key]) for key, value in again.state_dict().items())

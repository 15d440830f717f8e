"""A network that cannot be trained on one sample at a time is refused before the training; the trial has no trace."""

import pytest
import torch
from test_own_images import fill, own_cache, recipe  # noqa: F401

from hyperzoo.errors import RecipeError
from hyperzoo.experiments import build, train, trial_batch
from hyperzoo.training.recipe import Recipe


def plan(folder, arch="test_resnet", accumulate=1, **words) -> Recipe:
    made = recipe(folder, model=dict(arch=arch), size_px=32, **words)
    settings = dict(epochs=1, precision="fp32", accumulate=accumulate)
    return Recipe.model_validate(made.model_dump() | {"train": settings})


@pytest.mark.parametrize(
    "accumulate, batch_size, remedy",
    [
        (1, 1, "a batch of 1 gives .* 1 process.* train.accumulate 1; set data.batch_size to 2 or more$"),
        (
            2,
            2,
            "a batch of 2 gives .* train.accumulate 2; set data.batch_size to 4 or more, or lower train.accumulate$",
        ),
        (
            4,
            8,
            "a batch of 5 .all images. gives .* train.accumulate 4; add training images, or lower train.accumulate$",
        ),
    ],
)
@pytest.mark.fault("batch norm of a single image")
def test_batch_norm_of_one_image_is_one_error_before_the_training(tmp_path, accumulate, batch_size, remedy):
    folder = fill(tmp_path / "set", count=4, classes={"a": (1, 2, 3), "b": (4, 5, 6)})
    (folder / "a" / "3 x.png").unlink()  # 5 of 7 images are trained on, in parts of 2, 2 and 1
    with pytest.raises(RecipeError, match=f"test_resnet cannot be trained on one .*Expected more than 1 .*{remedy}"):
        train.run(plan(folder, accumulate=accumulate, batch_size=batch_size), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.lock", "run.pid"}


@pytest.mark.fault("batch norm of a single image", 2)
def test_the_number_of_processes_and_a_recurrent_batch_norm_count_too(tmp_path):
    made = plan(tmp_path, batch_size=4)
    step = build.step(made, build.model(made, 3, 3))
    step.model.pretrained_cfg |= {"input_size": (3, 32, 32)}  # as `describe_images` writes it
    trial_batch.check_smallest_batch(made, step, 100, processes=2)
    with pytest.raises(RecipeError, match="each of 4 process.* set data.batch_size to 8 or more, or use fewer proc"):
        trial_batch.check_smallest_batch(made, step, 100, processes=4)
    values = dict(name="a", data=dict(name="ptb", batch_size=1), optim=dict(lr=1.0), train=dict(epochs=1))
    made = Recipe.model_validate(values | dict(model=dict(arch="lstm200", args=dict(batch_norm=True))))
    step = build.step(made, build.model(made, 50, 1))
    with pytest.raises(RecipeError, match="at least 2 sequences; got 1.* set data.batch_size to 2 or more"):
        trial_batch.check_smallest_batch(made, step, 100, processes=1)


def test_a_batch_of_one_is_trained_on_where_the_network_takes_it(tmp_path):
    folder = fill(tmp_path / "set", count=2)
    train.run(plan(folder, arch="resnet20_cifar", batch_size=1), tmp_path / "maps of many pixels")
    frozen = plan(folder, batch_size=1)
    frozen = frozen.model_copy(update={"model": frozen.model.model_copy(update={"freeze": "backbone"})})
    train.run(frozen, tmp_path / "frozen batch norm")


@pytest.mark.parametrize("training", [False, True])
def test_the_trial_leaves_statistics_generators_and_mode(training):
    made = plan("photos")
    step = build.step(made, build.model(made, 3, 3)).train()
    before = {key: value.clone() for key, value in step.state_dict().items()}
    torch.manual_seed(0)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    seen = []
    step.model.register_forward_hook(lambda module, *_: (seen.append(module.training), torch.rand(9)))
    trial_batch.forward(step, torch.ones(2, 3, 32, 32), training=training)
    assert seen == [training] and step.training and torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(value, before[key]) for key, value in step.state_dict().items())

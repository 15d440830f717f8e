"""The classifier that belongs to an angular softmax loss, put into a model."""

from torch import nn
from torch.nn.parameter import is_lazy

from hyperzoo.errors import InputError
from hyperzoo.layers import SphereLinear
from hyperzoo.losses.angular_softmax import AngularSoftmax


def replace_classifier(model: nn.Module, criterion: AngularSoftmax) -> SphereLinear:
    """Make a timm model, or one of ours, trainable with `criterion`: its classifier becomes a W-Softmax layer.

    The logits of the model are then z_j = |x| g(theta_j) (arXiv 1711.03189, section 3), those of the loss without its
    margin; so the trained model is a plain classifier, and nobody who loads it needs the loss.

    Args:
        model: with timm's `get_classifier()` and `forward_head(x, pre_logits=True)`; changed in place. The class rows
            stay the same parameter; a bias is dropped, 'learnable' adds `raw_k`. Make the optimizer afterwards.
        criterion: gives the operator, k and eps.
    Returns:
        The new classifier, as `model.get_classifier()` now gives it.
    Raises:
        InputError: no classifier, or one that is not a linear layer. The model is unchanged.
    Example:
        >>> import timm
        >>> model = timm.create_model('resnet18', num_classes=10)
        >>> criterion = AngularSoftmax('linear', margin=4)
        >>> classifier = replace_classifier(model, criterion)
        >>> features = model.forward_head(model.forward_features(torch.zeros(2, 3, 32, 32)), pre_logits=True)
        >>> criterion(features, classifier.weight, torch.tensor([3, 7]), classifier.raw_k).backward()
    """
    get_classifier = getattr(model, "get_classifier", None)
    if get_classifier is None or not hasattr(model, "forward_head"):
        raise InputError(f"{type(model).__name__} has no get_classifier and forward_head, as timm's models have")
    old = get_classifier()
    if not isinstance(old, nn.Linear) or not isinstance(old.weight, nn.Parameter) or is_lazy(old.weight):
        raise InputError(
            f"the classifier of {type(model).__name__} must be a linear layer with parameters; got {type(old).__name__}"
        )
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    if not names:
        raise InputError(f"the classifier of {type(model).__name__} is not one of its modules")
    rows = old.weight
    new = SphereLinear(
        old.in_features,
        old.out_features,
        operator=criterion.operator,
        k=criterion.k,
        eps=criterion.eps,
        scale_by_norm=True,
        device=rows.device,
        dtype=rows.dtype,
    )
    new.weight = rows
    new.train(old.training)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)
    return new

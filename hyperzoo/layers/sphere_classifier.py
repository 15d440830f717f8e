"""Replace the classifier of a model by one of angles."""

from torch import nn
from torch.nn.parameter import is_lazy

from hyperzoo.errors import InputError
from hyperzoo.layers.operators import first_raw_k
from hyperzoo.layers.sphere import SphereLinear


def sphereize_classifier(
    model: nn.Module, operator: str = "cosine", *, k: float = 0.3, eps: float = 1e-4
) -> SphereLinear:
    """Replace the classifier of a model by z_j = |x| g(theta_j) (arXiv 1711.03189, section 3), in place.

    Args:
        model: has timm's `get_classifier()` and `forward_head`. The class rows stay the same parameter; a bias is
            dropped, and 'learnable' adds `raw_k`.
        operator, k, eps: as for `SphereLinear`.
    Returns:
        The new classifier, which `model.get_classifier()` returns from now on.
    Raises:
        InputError: no classifier, or one that is not a linear layer; an unknown operator. The model is unchanged.
    Example:
        >>> import timm
        >>> sphereize_classifier(timm.create_model('resnet18', num_classes=10), 'linear').out_features
        10
    """
    get_classifier = getattr(model, "get_classifier", None)
    if get_classifier is None or not hasattr(model, "forward_head"):
        raise InputError(f"{type(model).__name__} lacks get_classifier or forward_head, which timm's models have")
    old = get_classifier()
    if not isinstance(old, nn.Linear) or not isinstance(old.weight, nn.Parameter) or is_lazy(old.weight):
        raise InputError(
            f"the classifier of {type(model).__name__} must be a linear layer with parameters; got "
            f"{type(old).__name__}. Choose a network with one linear classifier"
        )
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    if not names:
        raise InputError(f"the classifier of {type(model).__name__} is not one of its modules")
    rows = old.weight
    new = SphereLinear(
        old.in_features,
        old.out_features,
        operator=operator,
        k=k,
        eps=eps,
        scale_by_norm=True,
        device="meta",
        dtype=rows.dtype,
    )
    new.weight, new.raw_k = rows, first_raw_k(operator, old.out_features, like=rows)
    new.train(old.training)
    for name in names:
        model.set_submodule(name, new)
    return new

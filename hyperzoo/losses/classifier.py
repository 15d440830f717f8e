"""The classifier that belongs to an angular softmax loss, put into a model."""

from torch import nn

from hyperzoo.layers import SphereLinear, sphereize_classifier
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
    return sphereize_classifier(model, criterion.operator, k=criterion.k, eps=criterion.eps)

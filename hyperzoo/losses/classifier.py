"""Replace the classifier of a model for training with an angular softmax loss."""

from torch import nn

from hyperzoo.layers import SphereLinear, sphereize_classifier
from hyperzoo.losses.angular_softmax import AngularSoftmax


def replace_classifier(model: nn.Module, criterion: AngularSoftmax) -> SphereLinear:
    """Replace the classifier of a timm or hyperzoo model by a W-Softmax layer, to train it with `criterion`.

    The logits become z_j = |x| g(theta_j) (arXiv 1711.03189, section 3), those of the loss without its margin, so the
    trained model predicts without the loss.

    Args:
        model: has timm's `get_classifier()` and `forward_head(x, pre_logits=True)`; changed in place. The class rows
            stay the same parameter; a bias is dropped, and 'learnable' adds `raw_k`. Create the optimizer afterwards.
        criterion: provides operator, k and eps.
    Returns:
        The new classifier, which `model.get_classifier()` returns from now on.
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

"""Mixup: train on convex combinations of two samples of a batch, of images or hidden states, and of their labels.

mixup: Beyond Empirical Risk Minimization, Zhang et al., ICLR 2018 (arXiv 1710.09412); Manifold Mixup, Verma et al.,
ICML 2019 (arXiv 1806.05236); CutMix, Yun et al., ICCV 2019 (arXiv 1905.04899). One interface for all three:

    with mixup:
        x, targets = mixup(x, y)
        loss = soft_target(model(x), targets)
"""

from hyperzoo.mixup.images import CutMix as CutMix
from hyperzoo.mixup.images import Mixup as Mixup
from hyperzoo.mixup.manifold import ManifoldMixup as ManifoldMixup

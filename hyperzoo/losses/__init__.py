"""Task losses: angular softmax with a margin, and losses for mixed labels."""

from hyperzoo.losses.angular_softmax import AngularSoftmax as AngularSoftmax
from hyperzoo.losses.angular_softmax import angular_logits as angular_logits
from hyperzoo.losses.classifier import replace_classifier as replace_classifier
from hyperzoo.losses.soft_target import SoftTarget as SoftTarget

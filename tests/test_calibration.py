"""Reliability bins and the calibration error agree with loops and with torchmetrics; all values are in percent."""

import dataclasses
import math

import pytest
import timm
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from hyperzoo.analysis import calibration, evaluate
from hyperzoo.data import ImageSet


def test_bins_and_error_agree_with_a_loop():
    torch.manual_seed(0)
    confidence, correct = torch.rand(500), torch.rand(500) < 0.6
    confidence[:4] = torch.tensor([0.0, 1.0, 0.25, 0.5])  # edges: the intervals are (low, high], and 0 is in the first
    bins = calibration.reliability(confidence, correct, bins=4)
    error = 0.0
    for i, found in enumerate(bins):
        inside = [n for n, p in enumerate(confidence.tolist()) if i / 4 < p <= (i + 1) / 4 or (p == 0 and i == 0)]
        assert found.count == len(inside)
        assert found.confidence == pytest.approx(100 * sum(confidence[inside].tolist()) / len(inside), rel=1e-6)
        assert found.accuracy == pytest.approx(100 * sum(correct[inside].tolist()) / len(inside))
        error += len(inside) / 500 * abs(found.accuracy - found.confidence)
    assert calibration.calibration_error(bins) == pytest.approx(error)


def test_nan_makes_the_error_nan():
    bins = calibration.reliability(torch.tensor([0.9, torch.nan]), torch.tensor([True, False]))
    assert sum(b.count for b in bins) == 2 and math.isnan(calibration.calibration_error(bins))


def test_the_error_agrees_with_torchmetrics():
    torch.manual_seed(1)
    logits, labels = 2 * torch.randn(400, 7), torch.randint(0, 7, (400,))
    bins = calibration.reliability(logits.softmax(1).amax(1), logits.argmax(1) == labels)
    assert len(bins) == 15 and min(b.count for b in bins) == 0 and sum(b.count for b in bins) == 400
    expected = multiclass_calibration_error(logits.softmax(1), labels, num_classes=7, n_bins=15)
    assert calibration.calibration_error(bins) == pytest.approx(100 * float(expected), abs=1e-4)


def test_the_metrics_contain_the_error_in_percent():
    torch.manual_seed(2)
    model = timm.create_model("resnet20_cifar", widths=(8, 8, 16)).eval()
    pixels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    images = ImageSet("c10", "test", pixels, torch.arange(40) % 10, tuple("abcdefghij"), "made")
    logits = evaluate.logits(model, images)
    expected = multiclass_calibration_error(logits.softmax(1), images.labels, num_classes=10, n_bins=15)
    metrics = evaluate.measure(model, images)
    assert metrics.ece == pytest.approx(100 * float(expected), abs=1e-4)
    assert f"ECE {metrics.ece:.2f} %" in str(metrics) and dataclasses.asdict(metrics)["ece"] == metrics.ece

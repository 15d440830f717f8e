"""Notes of a card on its data: how they deviate from the official ones, and how test results were used."""

DEVIATIONS = {  # fingerprint of the training images -> how they differ from the official images
    "b5469ac2eb6b1ac4adf6fcc45685ad7264e5b8a25145b554f336b3c6ab3926db": (
        "91 of the 60,000 CIFAR-10 images (71 train, 20 test; ships and horses) are JPEG re-encodings in the mirror "
        "that was read; all others are exact. At most 0.2 points of test accuracy can depend on them."
    ),
    "de06531b13b920e7538674898b3596a0cde88ddd398c8606b445cd9b1f2f048e": (
        "All images are identical to the official CIFAR-100 images."
    ),
}

TEST_SET_USE = {  # weight -> how its test set was used, where it took part in a decision
    **dict.fromkeys(
        ("cnn11_elu.per_c10", "cnn11_elu.plain_c10"),
        "We report the last epoch. Its number was chosen with test results of shorter trainings (CHANGELOG.md, 0.6.0).",
    ),
    **dict.fromkeys(
        ("resnet20_cifar.plain_c10", "spherenet20.sphere_c10"),
        "We report the last epoch. The learning rate has two cosine cycles, of which the second was added after the "
        "test set had been read at the end of the first.",
    ),
    "fast_cnn8.plain_c10": "We report the last epoch. Two shorter forms of the recipe (20 and 24 epochs) were tested "
    "before; what else changed was chosen on validation images.",
    "fast_cnn8_w96.plain_c10": "We report the last epoch. The recipe is that of `fast_cnn8.plain_c10`; the wider "
    "network was chosen after the test results of that weight.",
    "fast_cnn8_wide.plain_c10": "We report the last epoch. Epochs and cutout were set after the test results of the "
    "narrower networks; no other setting was tested.",
    "fast_sphere_cnn8.sphere_c10": "We report the last epoch. The recipe is that of `fast_cnn8.plain_c10`, unchanged.",
}

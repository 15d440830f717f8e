"""A bare training loop of 30 lines: Manifold Mixup, MHE and PER with any model of timm.

HYPERZOO_DATA=tests/assets/mirror python examples/bare_loop.py
"""

try:
    import timm
    import torch
    from timm.optim import create_optimizer_v2
    from torch.utils.data import DataLoader, TensorDataset

    import hyperzoo
    from hyperzoo import data
    from hyperzoo.losses import SoftTarget
    from hyperzoo.mixup import ManifoldMixup
    from hyperzoo.regularizers import MHE, PER
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is not installed: pip install "hyperzoo[train]"') from error


def main(epochs: int = 5) -> list[float]:
    """Train a small network; return the mean loss of each epoch, without the terms."""
    torch.manual_seed(0)
    images = data.load_images("c10", "train")
    pixels = hyperzoo.preprocess("resnet20_cifar")(images.images)
    loader = DataLoader(TensorDataset(pixels, images.labels), batch_size=26, shuffle=True)

    model = timm.create_model("resnet20_cifar", num_classes=len(images.classes))  # or any model of timm
    mixup = ManifoldMixup(model, len(images.classes), alpha=0.2)  # mixes images or the output of a stage
    mhe = MHE(model, hidden=1.0, output=10.0, half_space=True)  # a function of the weights
    per = PER(model, strength=0.1, layers="type:ReLU")  # a function of the activations
    soft_target = SoftTarget()
    optimizer = create_optimizer_v2(model, "sgd", lr=0.05, weight_decay=5e-4)  # terms have no parameters, except VCL

    losses = []
    for epoch in range(epochs):
        total = 0.0
        for x, y in loader:
            with mixup, mhe, per:
                x, targets = mixup(x, y)
                task = soft_target(model(x), targets)
                loss = task + mhe() + per()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += task.item() * len(y)
        losses.append(total / len(images))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()

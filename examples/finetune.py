"""Fine-tune spherenet20 on another data set, here CIFAR-10 with its ten classes merged into three.

HYPERZOO_DATA=tests/assets/mirror python examples/finetune.py

For a folder of images, replace `three_classes` by `torchvision.datasets.ImageFolder(folder, transform)` with the
transform `timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=True)`.
"""

try:
    import timm
    import torch
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from torch.utils.data import DataLoader, TensorDataset

    import hyperzoo
    from hyperzoo import data
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is not installed: pip install "hyperzoo[train]"') from error


THREE = {
    "animal": ("bird", "cat", "deer", "dog", "frog", "horse"),
    "on the road": ("automobile", "truck"),
    "in the air or on water": ("airplane", "ship"),
}


def three_classes(split: str) -> TensorDataset:
    """Images, preprocessed for spherenet20, with labels 0, 1 and 2."""
    images = data.load_images("c10", split)
    new = torch.tensor([[name in old for old in THREE.values()].index(True) for name in images.classes])
    return TensorDataset(hyperzoo.preprocess("spherenet20")(images.images), new[images.labels])


def main(epochs: int = 5, pretrained: bool = True) -> float:
    """Train all layers, with lower learning rates in early ones; return the test accuracy in percent."""
    torch.manual_seed(0)
    model = timm.create_model("spherenet20", pretrained=pretrained, num_classes=len(THREE))  # a new classifier
    optimizer = create_optimizer_v2(model, "sgd", lr=0.02, weight_decay=5e-4, layer_decay=0.7)
    schedule, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=epochs)
    loader = DataLoader(three_classes("train"), batch_size=26, shuffle=True)
    model.train()
    for epoch in range(epochs):
        for x, y in loader:
            loss = torch.nn.functional.cross_entropy(model(x), y, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step(epoch + 1)
        print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")

    x, y = three_classes("test").tensors
    with torch.inference_mode():
        accuracy = 100 * (model.eval()(x).argmax(1) == y).float().mean().item()
    print(f"accuracy: {accuracy:.1f} % of {len(y)} test images")
    return accuracy


if __name__ == "__main__":
    main()

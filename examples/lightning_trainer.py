"""Train a hyperzoo model with MHE and PER in Lightning: the terms are attributes, used as contexts of the forward.

pip install "hyperzoo[train]" lightning
HYPERZOO_DATA=tests/assets/mirror python examples/lightning_trainer.py
"""

try:
    import lightning
    import timm
    import torch
    from timm.optim import create_optimizer_v2
    from torch import Tensor
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    import hyperzoo
    from hyperzoo import data
    from hyperzoo.regularizers import MHE, PER
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is not installed: pip install "hyperzoo[train]" lightning') from error


class Regularized(lightning.LightningModule):
    """A network with MHE and PER in the training loss."""

    def __init__(self, arch: str, classes: int) -> None:
        super().__init__()
        self.model = timm.create_model(arch, num_classes=classes)
        self.mhe = MHE(self.model, hidden=1.0, output=10.0, half_space=True)
        self.per = PER(self.model, strength=0.1, layers="type:ReLU")

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        with self.mhe, self.per:
            loss = cross_entropy(self.model(x), y) + self.mhe() + self.per()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        x, y = batch
        self.log("accuracy", 100 * (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return create_optimizer_v2(self.model, "sgd", lr=0.05, weight_decay=5e-4)


def main(epochs: int = 3) -> dict[str, float]:
    """Train on most of the training images; return loss and held-out accuracy (%) of the last epoch."""
    lightning.seed_everything(0)
    train, held_out = data.load_images("c10", "train").hold_out(30)
    prepare = hyperzoo.preprocess("spherenet20")
    trained, validated = (TensorDataset(prepare(part.images), part.labels) for part in (train, held_out))
    loaders = DataLoader(trained, 25, shuffle=True), DataLoader(validated, 25)
    trainer = lightning.Trainer(max_epochs=epochs, log_every_n_steps=1, logger=False, enable_checkpointing=False)
    trainer.fit(Regularized("spherenet20", len(train.classes)), *loaders)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    print(found)
    return found


if __name__ == "__main__":
    main()

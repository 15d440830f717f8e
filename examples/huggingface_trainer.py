"""Train a hyperzoo model with MHE and PER in the Trainer of transformers; `compute_loss` adds the terms.

pip install "hyperzoo[train]" transformers
HYPERZOO_DATA=tests/assets/mirror python examples/huggingface_trainer.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

try:
    import timm
    from torch import Tensor, nn
    from torch.nn.functional import cross_entropy
    from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed

    import hyperzoo
    from hyperzoo import data
    from hyperzoo.regularizers import MHE, PER
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is not installed: pip install "hyperzoo[train]" transformers') from error


class RegularizedTrainer(Trainer):
    """A Trainer for timm models that adds MHE and PER to the training loss."""

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.mhe = MHE(model, hidden=1.0, output=10.0, half_space=True)
        self.per = PER(model, strength=0.1, layers="type:ReLU")

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        with self.mhe, self.per:
            logits = model(inputs["pixel_values"])
            loss = cross_entropy(logits, inputs["labels"])
            if model.training:
                loss = loss + self.mhe() + self.per()
        return (loss, {"logits": logits}) if return_outputs else loss


def accuracy(answers: EvalPrediction) -> dict[str, float]:
    return {"accuracy": 100 * float((answers.predictions.argmax(1) == answers.label_ids).mean())}


def main(folder: Path, epochs: int = 3) -> dict[str, float]:
    """Train on most of the training images; return loss and accuracy (%) on the held-out ones."""
    set_seed(0)
    prepare = hyperzoo.preprocess("spherenet20")
    train, held_out = (
        [{"pixel_values": x, "labels": y} for x, y in zip(prepare(part.images), part.labels, strict=True)]
        for part in data.load_images("c10", "train").hold_out(30)
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=25,
        learning_rate=1e-3,
        remove_unused_columns=False,  # the Trainer would drop columns that it does not know
        label_names=["labels"],
        report_to="none",
        save_strategy="no",
    )
    model = timm.create_model("spherenet20")
    trainer = RegularizedTrainer(
        model, args=arguments, train_dataset=train, eval_dataset=held_out, compute_metrics=accuracy
    )
    trainer.train()
    trainer.save_model()  # FOLDER/model.safetensors; timm.create_model(..., checkpoint_path=...) loads it
    return trainer.evaluate()


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if sys.argv[1:] else "runs/huggingface")))

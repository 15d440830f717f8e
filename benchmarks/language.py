"""Tokens per second of the engine relative to a bare loop over nn.LSTM: same sizes, text and optimizer, float32.

    python benchmarks/language.py [updates]      # default 30

Both alternate, so that other load affects them equally; the ratio is that of the medians. Limit: at least 0.97.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from engine_rate import median_rate
from torch import Tensor, nn

from hyperzoo.data import TextBatches, TextSet
from hyperzoo.experiments import build
from hyperzoo.training.recipe import Recipe

ROUNDS, COLUMNS, LENGTH, WORDS, UNITS, DROP, LIMIT = 5, 20, 35, 10_000, 200, 0.25, 0.97


class Bare(nn.Module):
    """lstm200 in plain torch: one two-layer nn.LSTM, embedding and softmax tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, UNITS)
        self.lstm = nn.LSTM(UNITS, UNITS, num_layers=2, dropout=DROP, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(WORDS))
        self.drop = nn.Dropout(DROP)

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, state = self.lstm(self.drop(self.embedding(tokens)), state)
        return F.linear(self.drop(hidden), self.embedding.weight, self.bias), (state[0].detach(), state[1].detach())


def recipe() -> Recipe:
    return Recipe.model_validate(
        dict(
            name="benchmark",
            model=dict(arch="lstm200", args=dict(drop_rate=DROP)),
            data=dict(name="ptb", batch_size=COLUMNS, length=LENGTH),
            optim=dict(lr=1.0, optimizer="momentum", momentum=0.0, clip_norm=0.25),
            train=dict(epochs=ROUNDS, precision="fp32"),
        )
    )


def bare_epoch(model: Bare, batches: TextBatches) -> float:
    optimizer, state, seen = torch.optim.SGD(model.parameters(), lr=1.0), None, 0
    started = time.perf_counter()
    for tokens, targets, _ in batches.epoch(1):
        optimizer.zero_grad()
        logits, state = model(tokens, state)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        seen += targets.numel()
    return seen / (time.perf_counter() - started)


def main(updates: int) -> None:
    plan, engine = recipe(), Accelerator()
    tokens = torch.randint(WORDS, (COLUMNS * (updates * LENGTH + 1),))
    text = TextSet("ptb", "train", tokens, tuple(map(str, range(WORDS))), 0, "made")
    network = build.model(plan, WORDS, 1)
    step = build.step(plan, network).to(engine.device)
    batches, bare = build.batches(plan, text, network, engine), Bare().to(engine.device)
    rates: list[float] = []

    def take_turns(_: nn.Module) -> dict[str, float]:
        rates.append(bare_epoch(bare, batches))
        return {}

    ours = median_rate(plan, engine, step, batches, take_turns)
    theirs = statistics.median(rates[1:])
    where = f"{engine.device.type}, {torch.get_num_threads()} threads"
    print(f"lstm200, {COLUMNS} x {LENGTH}, {where}: engine {ours:.0f} tokens/s, bare loop {theirs:.0f} tokens/s")
    print(f"ratio {ours / theirs:.3f}, at least {LIMIT}: {'ok' if ours / theirs >= LIMIT else 'MISSED'}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)

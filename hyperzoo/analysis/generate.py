"""Text from a language model of the zoo: a prompt is read, and the words behind it are drawn one by one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyperzoo import names, zoo
from hyperzoo.data.text import EOS, UNK
from hyperzoo.errors import InputError


@dataclass(frozen=True)
class Generated:
    """prompt: its words as they were read.   words: those drawn.   unknown: words of the prompt read as `<unk>`."""

    prompt: tuple[str, ...]
    words: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def text(self) -> str:
        """Prompt and continuation, with a line break for `<eos>`."""
        text = "".join("\n" if word == EOS else f" {word}" for word in (*self.prompt, *self.words))
        return text.replace("\n ", "\n").strip()


def run(
    name: str,
    prompt: str = "",
    *,
    tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Generated:
    """Let a language model write on.

    Args:
        name: a weight, an architecture for its default weight, or local-dir:FOLDER (a run folder is one).
        prompt: words between spaces; line breaks are ends of lines. Without any, the text begins with a new line.
        tokens: words to draw, 1 or more; an end of line is one.
        temperature, top_k, top_p: as for `probabilities`.
        seed: of the draws.
    Raises:
        InputError: no language model, or a number out of range. And what `zoo.load` raises.
    """
    if tokens < 1:
        raise InputError(f"tokens must be 1 or more; got {tokens}")
    probabilities(torch.zeros(1), temperature=temperature, top_k=top_k, top_p=top_p)  # refuse before loading
    model, vocabulary = _language_model(name)
    numbers = {word: number for number, word in enumerate(vocabulary)}
    given = prompt.replace("\n", f" {EOS} ").split()
    unknown = tuple(dict.fromkeys(word for word in given if word not in numbers))
    read = [word if word in numbers else UNK for word in given]
    generator, drawn, state = torch.Generator().manual_seed(seed), [], None
    ids = torch.tensor([[numbers[word] for word in read or [EOS]]])
    with torch.inference_mode():
        for _ in range(tokens):
            logits, state = model.run(ids, state)  # type: ignore[operator]
            chances = probabilities(logits[0, -1], temperature=temperature, top_k=top_k, top_p=top_p)
            ids = torch.multinomial(chances, 1, generator=generator)[None]
            drawn.append(vocabulary[int(ids)])
    return Generated(tuple(read), tuple(drawn), unknown)


def probabilities(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The chances with which the next word is drawn.

    softmax(logits / temperature), then only the `top_k` likeliest words, then the fewest likeliest ones that have
    `top_p` together (Holtzman et al., arXiv 1904.09751), scaled to a sum of 1. Of equally likely words, the first stay.

    Shapes:
        logits: (V,).   return: (V,), float64.
    Args:
        temperature: 0 or more; below 1 the likely words become likelier, and with 0 the likeliest is certain.
        top_k: 1 or more.   top_p: above 0, at most 1.
    Raises:
        InputError: a number out of these ranges.
    Example:
        >>> probabilities(torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), top_p=0.7)
        tensor([0.6250, 0.3750, 0.0000, 0.0000], dtype=torch.float64)
    """
    k, p = 1 if top_k is None else top_k, 1.0 if top_p is None else top_p
    if not (0 <= temperature < math.inf and k >= 1 and 0 < p <= 1):
        raise InputError(
            "temperature must be 0 or more, top_k 1 or more, top_p above 0 and at most 1; "
            f"got {temperature}, {top_k}, {top_p}"
        )
    order = logits.double().sort(descending=True, stable=True)
    if temperature == 0:
        chances = torch.zeros_like(order.values)
        chances[0] = 1.0
    else:
        chances = (order.values / temperature).softmax(0)
    if top_k is not None:
        chances[top_k:] = 0
        chances = chances / chances.sum()
    chances[chances.cumsum(0) - chances >= p] = 0
    return torch.zeros_like(chances).scatter(0, order.indices, chances / chances.sum())


def _language_model(name: str) -> tuple[nn.Module, tuple[str, ...]]:
    loaded = zoo.load(name)
    if not names.is_language(str(loaded.model.pretrained_cfg["architecture"])):  # type: ignore[index]
        known = [weight for weight in zoo.list_weights() if names.is_language(weight)]
        raise InputError(f"{name} is no language model; weights of those: {', '.join(known) or 'none yet'}")
    return loaded.model, loaded.classes

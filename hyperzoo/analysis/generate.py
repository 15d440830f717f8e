"""Sample text from a language model, word by word after a prompt."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyperzoo import names, zoo
from hyperzoo.data.text import EOS, UNK
from hyperzoo.errors import InputError


@dataclass(frozen=True)
class Generated:
    """The words of the prompt as the model read them, the sampled words, and the prompt's unknown words (`<unk>`)."""

    prompt: tuple[str, ...]
    words: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def text(self) -> str:
        """Prompt and continuation, with `<eos>` as a line break."""
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
    """Continue a prompt.

    Args:
        name: a weight, an architecture for its default weight, or local-dir:FOLDER, such as a run folder.
        prompt: words separated by spaces; a line break ends a line. An empty prompt starts a new line.
        tokens: number of words to sample, 1 or more; the end of a line counts as one.
        temperature, top_k, top_p: see `probabilities`.
        seed: of the sampling.
    Raises:
        InputError: not a language model, a vocabulary without `<eos>` or `<unk>`, or a value out of range. And what
            `zoo.load` raises.
    """
    if tokens < 1:
        raise InputError(f"tokens must be 1 or more; got {tokens}")
    probabilities(
        torch.zeros(1), temperature=temperature, top_k=top_k, top_p=top_p
    )  # raises before the model is loaded
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
    """The distribution from which the next word is sampled.

    softmax(logits / temperature), restricted to the `top_k` likeliest words and then to the fewest words whose
    probabilities sum to `top_p` (Holtzman et al., arXiv 1904.09751), and normalized. Ties keep the first words.

    Shapes:
        logits: (V,).   return: (V,), float64.
    Args:
        temperature: 0 or more; below 1 favors likely words, 0 takes the likeliest.
        top_k: 1 or more.
        top_p: above 0, at most 1.
    Raises:
        InputError: a value out of range.
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
        raise InputError(f"{name} is not a language model. Language models: {', '.join(known) or 'none yet'}")
    if missing := [mark for mark in (EOS, UNK) if mark not in loaded.classes]:
        raise InputError(f"the vocabulary of {name} lacks {' and '.join(missing)}; it is not that of a trained text")
    return loaded.model, loaded.classes

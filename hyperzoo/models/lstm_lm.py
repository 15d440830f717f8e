"""Word language models: an embedding, LSTM layers, and a softmax over the vocabulary.

Two layers of 650 units are the networks of projected error function regularization (PER, arXiv 2002.05366); 200 units
train on a CPU. `lstm200` and `lstm650` reuse the embedding as the softmax matrix (RE, arXiv 1608.05859); `_untied`
networks have separate matrices. Recurrent batch norm and variational dropout (VD) are arguments.
"""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hyperzoo.errors import InputError
from hyperzoo.layers.recurrent_bn import BatchNormLSTM
from hyperzoo.models._create import Variant, create, register_variants, resolved_cfg, weight_cfgs

__all__ = ["LSTMLanguageModel"]
PAPERS = ("2002.05366", "1608.05859")  # arXiv numbers, on the cards of weights

State = list[tuple[Tensor, Tensor]]
DROPOUTS = ("standard", "variational")


class LSTMLanguageModel(nn.Module):
    """Predicts the next word from all words before it.

    Shapes:
        tokens: (B, T), integers from 0 to V - 1.   return: (B, T, V), logits of the next word after each.
    Args:
        width: units of the embedding and of every layer, D.
        depth: LSTM layers, L; each is a module, so that hooks see its hidden states.
        num_classes: words of the vocabulary, V.
        tied: use the embedding as the softmax matrix too.
        drop_rate: dropout of the embedded words, between layers and before the softmax, 0 or more and below 1.
        dropout: 'standard', or 'variational': one mask per sequence for all of its steps (Gal and Ghahramani, arXiv
            1512.05287). It has no parameters.
        batch_norm: recurrent batch norm in every layer, see `layers.BatchNormLSTM`.
    Raises:
        InputError: an argument outside these ranges, or an input other than token ids.
    Differs:
        Variational dropout does not mask the recurrent connections, which torch's fused LSTM does not allow.
    Example:
        >>> model = LSTMLanguageModel(width=8, num_classes=20).eval()
        >>> text = torch.tensor([[3, 1, 4, 1]])
        >>> logits, state = model.run(text[:, :3])
        >>> logits.shape, torch.allclose(model.run(text[:, 3:], state)[0], model(text)[:, 3:], atol=1e-6)
        (torch.Size([1, 3, 20]), True)
    """

    def __init__(
        self,
        width: int = 200,
        depth: int = 2,
        num_classes: int = 10_000,
        tied: bool = True,
        drop_rate: float = 0.5,
        dropout: str = "standard",
        batch_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dropout not in DROPOUTS:
            raise InputError(f"dropout must be one of {', '.join(DROPOUTS)}; got {dropout!r}")
        if min(width, depth, num_classes) < 1 or not 0 <= drop_rate < 1:
            raise InputError(
                "width, depth and num_classes must be 1 or more, drop_rate 0 or more and below 1; "
                f"got {width}, {depth}, {num_classes}, {drop_rate}"
            )
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = width
        self.in_chans = 1
        self.drop_rate = drop_rate
        self.dropout = dropout
        self.embedding = nn.Embedding(num_classes, width, **dd)
        self.layers = nn.ModuleList(
            BatchNormLSTM(width, width, **dd) if batch_norm else nn.LSTM(width, width, batch_first=True, **dd)
            for _ in range(depth)
        )
        self.decoder = None if tied else nn.Linear(width, num_classes, bias=False, **dd)
        self.decoder_bias = nn.Parameter(torch.zeros(num_classes, **dd))
        self.init_weights()

    def init_weights(self) -> None:
        """Embedding and softmax: uniform in [-0.1, 0.1]. LSTMs: torch's default, uniform within 1 / sqrt(D)."""
        for module in (self.embedding, self.decoder):
            if module is not None:
                nn.init.uniform_(module.weight, -0.1, 0.1)

    def get_classifier(self) -> nn.Embedding | nn.Linear:
        """The softmax matrix, which is the embedding of a tied model."""
        return self.embedding if self.decoder is None else self.decoder

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Raises InputError: the vocabulary belongs to the weights."""
        raise InputError(f"{self._name()} has a fixed vocabulary of {self.num_classes} words; build another model")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raises InputError if enabled."""
        if enable:
            raise InputError(f"{self._name()} has no gradient checkpointing: torch runs its layers as a whole")

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of parameter names in the order of the layers, for layer-wise learning rates."""
        return dict(stem=r"^embedding", blocks=r"^layers\.(\d+)")

    def run(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits, and the state after the last token; pass a state to continue a text.

        With `batch_norm`, every call counts its steps from 0, so a text in two calls has other logits than in one.

        Shapes:
            state: L pairs (hidden, cell) of (B, D) each; None means zeros.   return: (B, T, V), and a state.
        """
        features, state = self._features(tokens, state)
        return self.forward_head(features), state

    def forward_features(self, tokens: Tensor) -> Tensor:
        """Hidden states of the last layer, (B, T, D), after dropout."""
        return self._features(tokens, None)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Hidden states (B, T, D) to logits (B, T, V)."""
        if pre_logits:
            return x
        if self.decoder is None:
            return F.linear(x, self.embedding.weight, self.decoder_bias)
        return self.decoder(x) + self.decoder_bias  # a classifier of angles may have replaced it

    def forward(self, tokens: Tensor) -> Tensor:
        return self.run(tokens)[0]

    def _features(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        x = self._drop(self.embedding(self._checked(tokens)))
        after: State = []
        for i, layer in enumerate(self.layers):
            before = None if state is None else (state[i][0][None], state[i][1][None])
            x, (hidden, cell) = layer(x, before)
            x = self._drop(x)
            after.append((hidden[0], cell[0]))
        return x, after

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_rate:
            return x
        if self.dropout == "standard":
            return F.dropout(x, self.drop_rate)
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.drop_rate)

    def _checked(self, tokens: Tensor) -> Tensor:
        if tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise InputError(
                f"{self._name()} expects token ids, an integer tensor (batch, time); "
                f"got {tokens.dtype} {tuple(tokens.shape)}"
            )
        if tokens.shape[1] == 0:
            raise InputError(f"{self._name()} expects at least one token a row; got {tuple(tokens.shape)}")
        if tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
            low, high = (bound.item() for bound in tokens.aminmax())
            if low < 0 or high >= self.num_classes:
                raise InputError(f"token ids of {self._name()} are 0 to {self.num_classes - 1}; got {low} to {high}")
        return tokens

    def _name(self) -> str:
        cfg = getattr(self, "pretrained_cfg", None) or {}
        return str(cfg.get("architecture", "a language model"))


def _cfg() -> dict[str, Any]:
    return dict(  # timm requires the shape of an image: one channel, one row of 35 tokens
        num_classes=10_000,
        input_size=(1, 1, 35),
        mean=(0.0,),
        std=(1.0,),
        crop_pct=1.0,
        interpolation="bilinear",
        first_conv=None,
        classifier=None,
        license="mit",
    )


VARIANTS = {
    "lstm200": Variant(
        "Two LSTM layers of 200 units, embedding and softmax tied: 2.65 M parameters with 10,000 words.",
        dict(width=200, tied=True),
    ),
    "lstm200_untied": Variant(
        "Two LSTM layers of 200 units: 4.65 M parameters with 10,000 words.", dict(width=200, tied=False)
    ),
    "lstm650": Variant(
        "Two LSTM layers of 650 units, embedding and softmax tied: 13.28 M parameters with 10,000 words.",
        dict(width=650, tied=True),
    ),
    "lstm650_untied": Variant(
        "Two LSTM layers of 650 units: 19.78 M parameters with 10,000 words.", dict(width=650, tied=False)
    ),
}
default_cfgs = weight_cfgs(dict.fromkeys(VARIANTS, _cfg()))


def _create(arch: str, pretrained: bool, args: dict[str, Any], **kwargs: Any) -> LSTMLanguageModel:
    if kwargs.pop("features_only", False):
        raise InputError("language models have no feature maps; use forward_features(tokens)")
    cfg = resolved_cfg(arch, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    words = kwargs.get("num_classes", cfg.num_classes)
    if pretrained and words != cfg.num_classes:
        name = ".".join(filter(None, (arch, cfg.tag)))
        raise InputError(
            f"{name} has a fixed vocabulary of {cfg.num_classes} words; num_classes={words} needs pretrained=False"
        )
    ignored = ("in_chans", "global_pool", "img_size")  # of images; timm may pass them
    return create(LSTMLanguageModel, arch, pretrained, args, kwargs_filter=ignored, **kwargs)


register_variants(__name__, VARIANTS, _create)

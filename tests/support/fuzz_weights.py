"""Random damage to a weight file: the loader refuses it with one kind of error, or loads it; never anything else.

`python tests/support/fuzz_weights.py 1000000 [SEED]` tries a million. Mutation n of a seed is always the same: both
numbers name a finding, and its file is kept.
"""

import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import timm
from safetensors.torch import save

import hyperzoo  # noqa: F401  registers the models
from hyperzoo import errors

ARCH, ARGS = "plain_cnn3", dict(widths=(4, 6, 8))  # a small file: most damage meets its header


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Up to five bits, bytes or digits changed, put in or taken out, mostly in the header."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        kind, at = rng.randrange(4), min(rng.randrange(rng.choice((16, 200, len(data)))), len(changed) - 1)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + 1] = rng.randbytes(rng.randrange(1, 4))
        elif kind == 2:
            del changed[at : at + rng.randrange(1, 9)]
        else:
            changed[at : at + 1] = rng.choice(b'0123456789{}[]":,FIBU').to_bytes(1, "little")
    return bytes(changed)


def load(file: Path) -> str:
    """'refused' or 'loaded'; any other exception is a finding."""
    try:
        timm.create_model(ARCH, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), **ARGS)
    except (errors.WeightFileError, errors.WeightUnavailableError):
        return "refused"
    return "loaded"


def campaign(count: int, seed: int, folder: Path) -> Counter[str]:
    """How many of `count` damaged files were refused, and how many loaded.

    Raises:
        AssertionError: a mutation ended in another way; its file stays in the folder.
    """
    data, file = save(timm.create_model(ARCH, **ARGS).state_dict()), folder / "model.safetensors"
    outcomes = Counter[str]()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Casting complex values to real", UserWarning)  # a dtype byte may become C64
        for n in range(count):
            file.write_bytes(mutated(data, random.Random(f"{seed} {n}")))
            try:
                outcomes[load(file)] += 1
            except BaseException as error:
                raise AssertionError(f"mutation {n} of seed {seed}: {type(error).__name__}; see {file}") from error
    return outcomes


if __name__ == "__main__":
    number, chosen = int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 0
    print(dict(campaign(number, chosen, Path(tempfile.mkdtemp()))))

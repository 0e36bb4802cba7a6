"""Weight initialisation."""

import math

from torch import nn

from gptloom.config.model import ModelConfig

STD = 0.02
"""GPT-2's standard deviation of all matrices and embeddings (Radford et al. 2019, released code)."""

LARGEST_LOGIT_STD = 0.1
"""Largest standard deviation of the first logits.

With GPT-2's own value, 0.02 * sqrt(768) = 0.55, the first loss is about 0.55 ** 2 / 2 = 0.15 nats above ln(vocab_size).
"""


def initialise(model: nn.Module, config: ModelConfig) -> None:
    """Draw the weights in place, from torch's global generator.

    pytorch: leave every layer as its constructor drew it.

    gpt2: draw matrices and embeddings from N(0, 0.02^2) and set biases to 0. Divide the standard deviation of the
    matrices that write to the residual stream by sqrt(2 n_layer). Scale the gain of the final norm so that the logits'
    standard deviation is at most `LARGEST_LOGIT_STD`; the first loss is then ln(vocab_size) for every seed. A post-norm
    model has no final norm, so its head is scaled instead. Token embeddings have unit variance with sinusoidal
    positions (section 3.4 of Vaswani et al. 2017 multiplies them by sqrt(n_embd)) and in recurrent models, unless the
    head is tied to them.

    zero-projection: as gpt2, but the matrices that write to the stream, and a head that is not tied, start at zero.
    Every block is the identity at first.
    """
    if config.init == "pytorch":
        return
    zero, tied = config.init == "zero-projection", config.head == "tied"
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            writes = name.endswith(("mixer.out", "cross.out", "mlp.down"))
            if zero and (writes or (name == "head" and not tied)):
                nn.init.zeros_(module.weight)
            else:
                depth = (2 * config.n_layer) ** 0.5 if writes else 1.0
                nn.init.normal_(module.weight, std=_spread(name, module, config) / depth)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif name == "final_norm" and isinstance(module, nn.LayerNorm | nn.RMSNorm) and (not zero or tied):
            nn.init.constant_(module.weight, min(1.0, LARGEST_LOGIT_STD / (STD * config.n_embd**0.5)))


def _spread(name: str, module: nn.Module, config: ModelConfig) -> float:
    """Standard deviation of a matrix or embedding, before the division by sqrt(2 n_layer)."""
    if config.head == "tied":
        return STD
    if isinstance(module, nn.Embedding) and (config.is_recurrent or config.positions == "sinusoidal"):
        return 1.0
    if name == "head" and config.norm_position == "post" and not config.is_recurrent:
        return min(STD, LARGEST_LOGIT_STD / math.sqrt(config.n_embd))
    return STD

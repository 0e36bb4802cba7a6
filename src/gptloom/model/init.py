"""How the weights are drawn before training."""

import math

from torch import nn

from gptloom.config.model import ModelConfig

STD = 0.02
"""GPT-2's standard deviation of every matrix and table (Radford et al. 2019, released code)."""

LARGEST_LOGIT_STD = 0.1
"""Spread of the first logits.

GPT-2's own, 0.02 sqrt(768) = 0.55, starts about 0.55 ** 2 / 2 = 0.15 nats above ln(vocab_size).
"""


def initialise(model: nn.Module, config: ModelConfig) -> None:
    """Draw the weights anew, in place, from torch's global generator.

    pytorch leaves every layer as its constructor drew it. gpt2 draws matrices and tables from N(0, 0.02), starts biases
    at 0, and divides the standard deviation of the matrices that write into the stream by sqrt(2 n_layer). The gain of
    the norm before the head starts below 1 where the logits would else be wider than `LARGEST_LOGIT_STD`, so that every
    seed begins at ln(vocab_size); where norms come after the sums, it is the head that starts smaller. Beside
    sinusoids, which are of unit size, token tables are too, unless the head is tied to them (Vaswani et al. 2017,
    section 3.4, multiply them by sqrt(n_embd)), and before recurrent layers, whose gates would else hardly see what is
    read. zero-projection starts the writing matrices, and a head of its own, at zero: every block begins as the
    identity.
    """
    if config.init == "pytorch":
        return
    zero = config.init == "zero-projection"
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            writes = name.endswith(("mixer.out", "cross.out", "mlp.down"))
            if zero and (writes or (name == "head" and config.head != "tied")):
                nn.init.zeros_(module.weight)
            else:
                nn.init.normal_(
                    module.weight, std=_spread(name, module, config) / ((2 * config.n_layer) ** 0.5 if writes else 1.0)
                )
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif (
            name == "final_norm"
            and isinstance(module, nn.LayerNorm | nn.RMSNorm)
            and not (zero and config.head != "tied")
        ):
            nn.init.constant_(module.weight, min(1.0, LARGEST_LOGIT_STD / (STD * config.n_embd**0.5)))


def _spread(name: str, module: nn.Module, config: ModelConfig) -> float:
    """The standard deviation of a matrix or table, before it is divided for its depth."""
    if (
        isinstance(module, nn.Embedding)
        and config.head != "tied"
        and (config.is_recurrent or config.positions == "sinusoidal")
    ):
        return 1.0
    if name == "head" and config.norm_position == "post" and config.head != "tied" and not config.is_recurrent:
        return min(STD, LARGEST_LOGIT_STD / math.sqrt(config.n_embd))
    return STD

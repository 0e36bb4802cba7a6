"""How the weights are drawn before training."""

from torch import nn

from gptloom.config import ModelConfig

STD = 0.02
"""GPT-2's standard deviation of every matrix (Radford et al. 2019, released code)."""

LARGEST_LOGIT_STD = 0.28
"""With unit-variance inputs, logits of this spread put the first loss about 0.28 ** 2 / 2 = 0.04 nats above ln(vocab_size)."""


def initialise(model: nn.Module, config: ModelConfig) -> None:
    """Draw the weights anew, in place, from torch's global generator.

    pytorch leaves every layer as its constructor drew it. gpt2 draws matrices and tables from N(0, 0.02), starts
    biases at 0, and divides the standard deviation of the matrices that write into the stream by sqrt(2 n_layer). The output
    table is drawn narrower where 0.02 would be too wide: at 768, GPT-2's own 0.02 starts 0.15 nats above ln(vocab_size).
    zero-projection starts those writing matrices, and a head of its own, at zero, so that every block begins as the identity.
    """
    if config.init == "pytorch":
        return
    zero = config.init == "zero-projection"
    output_std = min(STD, LARGEST_LOGIT_STD * config.n_embd**-0.5)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        writes = name.endswith(("mixer.out", "mlp.down"))
        is_output = name == "head" or (name == "token_table" and config.head == "tied")
        if zero and (writes or (name == "head" and config.head != "tied")):
            nn.init.zeros_(module.weight)
        elif is_output:
            nn.init.normal_(module.weight, std=output_std)
        else:
            nn.init.normal_(module.weight, std=STD / (2 * config.n_layer) ** 0.5 if writes else STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

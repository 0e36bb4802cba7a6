"""Names of the same weights in other programs, as two-way tables."""

import re
from collections.abc import Iterable, Mapping

# nanoGPT and minGPT name their layers alike, and both keep matrices as nn.Linear does, (out, in), which is also how
# they lie here.
NANOGPT = {
    "transformer.wte.weight": "token_table.weight",
    "transformer.wpe.weight": "position_table.weight",
    "transformer.h.{n}.ln_1.weight": "blocks.{n}.norm1.weight",
    "transformer.h.{n}.ln_1.bias": "blocks.{n}.norm1.bias",
    "transformer.h.{n}.attn.c_attn.weight": "blocks.{n}.mixer.qkv.weight",
    "transformer.h.{n}.attn.c_attn.bias": "blocks.{n}.mixer.qkv.bias",
    "transformer.h.{n}.attn.c_proj.weight": "blocks.{n}.mixer.out.weight",
    "transformer.h.{n}.attn.c_proj.bias": "blocks.{n}.mixer.out.bias",
    "transformer.h.{n}.ln_2.weight": "blocks.{n}.norm2.weight",
    "transformer.h.{n}.ln_2.bias": "blocks.{n}.norm2.bias",
    "transformer.h.{n}.mlp.c_fc.weight": "blocks.{n}.mlp.up.weight",
    "transformer.h.{n}.mlp.c_fc.bias": "blocks.{n}.mlp.up.bias",
    "transformer.h.{n}.mlp.c_proj.weight": "blocks.{n}.mlp.down.weight",
    "transformer.h.{n}.mlp.c_proj.bias": "blocks.{n}.mlp.down.bias",
    "transformer.ln_f.weight": "final_norm.weight",
    "transformer.ln_f.bias": "final_norm.bias",
    "lm_head.weight": "head.weight",
}
"""Name there: name here; {n} stands for the layer."""

NANOGPT_TABLES = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
"""Causal masks that older versions save among the weights."""


def rename(names: Iterable[str], table: Mapping[str, str]) -> dict[str, str | None]:
    """Each name in the other program's words; None for one that the table does not have."""
    found: dict[str, str | None] = {}
    for name in names:
        layer = re.search(r"\.(\d{1,4})\.", name)
        other = table.get(name.replace(layer[0], ".{n}.", 1) if layer else name)
        found[name] = other.replace("{n}", layer[1]) if other is not None and layer else other
    return found


def reverse(table: Mapping[str, str]) -> dict[str, str]:
    """The table read the other way."""
    return {there: here for here, there in table.items()}

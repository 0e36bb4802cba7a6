"""The model of every ladder step in plain code, for reading and for checking the production model.

Every class is the textbook formula: no batching over heads, no cache, no fused kernels. `lecture` has the lecture's
complete GPT, `steps` the steps before it and the post-norm variant, `modern` the later ones, `recurrent` the recurrent
models.
"""

from gptloom.reference.build import PLAIN, copy_weights, correspondence, from_decoder, plain_model, to_decoder
from gptloom.reference.lecture import Block, FeedForward, Head, LayerNorm, MultiHeadAttention, PlainGPT

__all__ = [
    "PLAIN",
    "Block",
    "FeedForward",
    "Head",
    "LayerNorm",
    "MultiHeadAttention",
    "PlainGPT",
    "copy_weights",
    "correspondence",
    "from_decoder",
    "plain_model",
    "to_decoder",
]

"""The model of every ladder step in the plainest code: to be read from top to bottom, and to check the fast model against.

Every class is the textbook formula. Nothing is batched over heads, nothing is cached, nothing is fused. The lecture's
whole GPT is in `lecture`, the steps that lead up to it and its variant with the norm afterwards in `steps`, what came
later in `modern`.
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

"""The first Transformer: an encoder reads a source, a decoder writes a target and looks at what was read (Vaswani et al. 2017)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config import ModelConfig
from gptloom.model.base import LanguageModel
from gptloom.model.decoder import Decoder
from gptloom.model.stack import Block, Stack
from gptloom.model.state import Context, Memory, State


class EncoderDecoder(Decoder):
    """A decoder whose blocks also attend to an encoder's memory. `hidden` needs that memory in its context or state.

    Args:
        config: the shape of both sides; each has n_layer blocks.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build both sides and draw their weights."""
        super().__init__(config, cross=True)

    def _build_more(self) -> None:
        self.encoder = Stack(self.config, causal=False)
        if self.config.tables == "shared":
            self.encoder.token_table.weight = self.token_table.weight

    def encode(self, sources: Int[Tensor, "b s"], context: Context | None = None) -> Memory:
        """Read sources; ids below 0 are padding, which nobody looks at. A trace in the context gets the encoder's own weights."""
        return Memory(self.encoder.run(sources, context or Context()), (sources >= 0)[:, None, None])

    def translate(self, sources: Int[Tensor, "b s"], inputs: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        """Logits of the token after each input, given the sources."""
        return self.unembed(self.hidden(inputs, Context(memory=self.encode(sources))))


class Conditioned(LanguageModel):
    """A decoder that has read its sources, one for each row: to whoever writes with it, a language model like any other."""

    def __init__(self, model: EncoderDecoder, memory: Memory) -> None:
        """Keep the model and what it has read."""
        super().__init__()
        self.model, self.memory, self.config = model, memory, model.config
        self.token_table = model.token_table
        self.train(model.training)

    def hidden(self, ids: Int[Tensor, "b t"], context: Context | None = None) -> Float[Tensor, "b t c"]:
        """As the decoder's; without a state, all rows are read from their beginning, beside their sources."""
        context = context or Context()
        if context.state is None:
            context.memory = self.memory
        return self.model.hidden(ids, context)

    def unembed(self, hidden: Float[Tensor, "*n c"]) -> Float[Tensor, "*n v"]:
        """As the decoder's."""
        return self.model.unembed(hidden)

    @torch.no_grad()
    def init_state(self, batch: int, length: int) -> State:
        """The decoder's state, which holds the sources' keys and values already.

        Raises:
            ValueError: `batch` is not the number of sources.
        """
        if batch != len(self.memory.vectors):
            raise ValueError(f"{batch} rows need as many sources, not {len(self.memory.vectors)}")
        state = self.model.init_state(batch, length)
        for block, slot in zip(self.model.blocks, state.slots, strict=False):  # n-grams have one more
            assert isinstance(block, Block) and block.cross is not None
            slot.update(block.cross.read(self.memory))
        return state


def pad_sources(rows: list[list[int]], device: torch.device) -> Int[Tensor, "b s"]:
    """Sources of different lengths as one tensor, padded with -1 on the right."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row, device=device) for row in rows], batch_first=True, padding_value=-1)

"""The model that a configuration describes."""

from gptloom.config import ModelConfig
from gptloom.model.base import LanguageModel
from gptloom.model.decoder import Decoder
from gptloom.model.encoder_decoder import EncoderDecoder
from gptloom.model.recurrent import Recurrent


def build_model(config: ModelConfig) -> LanguageModel:
    """A model with freshly drawn weights, from torch's global generator."""
    if config.is_recurrent:
        return Recurrent(config)
    return EncoderDecoder(config) if config.architecture == "encoder-decoder" else Decoder(config)

"""Pictures. They take numbers and labels, and know neither models nor tokenizers."""

from gptloom.pictures.attention import draw_alignment, draw_attention, draw_head
from gptloom.pictures.inside import draw_embedding, draw_gradient_by_distance, draw_lens
from gptloom.pictures.races import draw_races
from gptloom.pictures.statistics import draw_statistics

__all__ = ["draw_alignment", "draw_attention", "draw_embedding", "draw_gradient_by_distance", "draw_head", "draw_lens", "draw_races", "draw_statistics"]

"""From token ids to token ids: sampling, generation, evaluation."""

"""Measurements of a model on a text: attention, logit lens, losses, activations and gradients."""

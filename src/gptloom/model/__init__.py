"""Models and the training loss. `transformer.py` is the best file to begin with."""

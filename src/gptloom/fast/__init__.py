"""Training and writing without autograd."""

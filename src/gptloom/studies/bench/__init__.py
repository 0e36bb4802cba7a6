"""What a model costs on this machine, as one thing at a time grows, and where the machine's limit lies."""

"""`gptloom verify`: the claims that every number rests on, checked on this machine, for this model and this text."""

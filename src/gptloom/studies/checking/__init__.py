"""A learner's own code against the reference: what differs, in words."""

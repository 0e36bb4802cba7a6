"""Studies: the ladder of lessons, comparisons that do not fool you, and the reproduction of published numbers."""

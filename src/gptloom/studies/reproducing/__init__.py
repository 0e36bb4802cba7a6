"""The documents' own runs, with the lecture's draws, beside their published numbers."""

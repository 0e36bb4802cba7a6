"""Models of other programs, brought in and taken out."""

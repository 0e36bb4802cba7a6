"""What a run keeps: its format, where it is, its state, and when it is written."""

"""Text to batches: sources, tokenizers, the token store, windows and a report on a text.

Nothing is imported here; take what is needed from `gptloom.data.sources`, `.tokenizers`, `.tokens`, `.batches` and
`.report`.
"""

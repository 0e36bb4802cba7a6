"""Text to batches: sources, tokenizers, token files, windows and a report on a text.

Import names from `gptloom.data.sources`, `.tokenizers`, `.tokens`, `.batches` and `.report`; this file imports none.
"""

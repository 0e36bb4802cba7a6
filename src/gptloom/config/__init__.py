"""All settings: fields, checks and recipes."""

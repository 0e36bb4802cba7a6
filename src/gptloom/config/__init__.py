"""Every setting: its fields, its checks, and the recipes."""

"""Pictures and HTML pages, made from plain numbers."""

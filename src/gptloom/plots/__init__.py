"""Pictures from plain numbers, and pages that show them."""

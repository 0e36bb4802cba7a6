"""The models and what training minimises."""

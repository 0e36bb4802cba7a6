"""Files that survive what happens to a machine, and files from outside."""

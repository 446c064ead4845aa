"""One folder per op: its meaning, what it is to PyTorch, and one file per backend."""

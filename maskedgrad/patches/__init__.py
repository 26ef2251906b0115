"""Row patches: the trained rows of a model as a small file of their own."""

"""Tensors as examples have them: one of any shape, or several with names."""

"""Pixels of images, read with NumPy and Pillow alone."""

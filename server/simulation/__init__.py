"""Flower's simulation runtime as this package runs it: processes that end together, workers that are replaced."""

"""Experiments on parameter-space saliency: the claims of its paper, each with its controls."""

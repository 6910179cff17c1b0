"""Selectors: they choose the channels that travel, under a budget."""

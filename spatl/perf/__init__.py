"""Measurement of what a simulation costs: beside a bare loop, by its parts, and by its number of clients."""

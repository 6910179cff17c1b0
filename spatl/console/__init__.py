"""Command line: `spatl` and its commands."""

"""The command line: `spatl` and its commands."""

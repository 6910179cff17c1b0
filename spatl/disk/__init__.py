"""Files that are replaced whole, and written by one process at a time."""

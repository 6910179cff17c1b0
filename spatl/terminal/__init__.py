"""Output on a terminal: tables, lines and progress."""

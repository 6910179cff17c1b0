"""The terminal: tables, lines and progress, the only room that knows rich."""

"""Config: every setting in its section, the rules across them, and how one is read."""

"""Every setting: the sections of a config, the rules across them, and how one is read."""

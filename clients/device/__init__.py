"""Programs that keep a device in the federation; those that wait hold the standard library alone."""

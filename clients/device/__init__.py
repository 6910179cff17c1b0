"""Programs of a device in a federation; those that wait between messages load the standard library alone."""

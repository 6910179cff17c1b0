"""The wire: numbers as bytes, and the messages of both directions."""

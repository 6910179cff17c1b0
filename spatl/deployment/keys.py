"""Words by which the server says why it refuses a client's key, which Flower's answer leaves open."""

UNKNOWN_KEY = "unknown key"
"""No client with this key belongs to the federation."""
KEY_IN_USE = "key in use"
"""A SuperNode with this key is connected, or was killed within the last minute."""

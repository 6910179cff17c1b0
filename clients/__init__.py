"""The client's side of a federation: messages in, messages out, and what it keeps between them."""

"""The algorithm: a client's half of a round and the server's, without Flower."""

"""The server's side of a federation: sampling, aggregation, accounting, and the engines that drive both sides."""

"""Agent: the learned selection policy; it may use `spatl`, and is used by clients through the selector protocol."""

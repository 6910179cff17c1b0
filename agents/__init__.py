"""The learned selection policy's room; it may use `spatl`, and is used by `clients` through the selector protocol."""

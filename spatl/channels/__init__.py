"""Channels of an encoder: its layout as one flat vector, its channel groups, their costs, and selections of them."""

"""The encoder as channels: its layout as one flat vector, its channel groups, what they cost, and what a choice is."""

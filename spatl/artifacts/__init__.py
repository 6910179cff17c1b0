"""Models that leave a run: their files, and what is made of them."""

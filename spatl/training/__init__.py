"""Local training, its correction by control variates, and evaluation."""

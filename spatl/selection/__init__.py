"""Which channels travel: groups of channels, their costs, budgets, and the selectors that pick."""

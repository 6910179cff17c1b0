"""Budgets as messages name them."""

from hypothesis import given
from hypothesis import strategies as st

from spatl.channels.costs import smallest_budget


@given(floor=st.one_of(st.floats(1e-6, 1.0), st.integers(1, 10_000).map(lambda n: n / 1e4 * (1 + 2**-52))))
def test_the_smallest_budget_that_a_message_names_suffices(floor):
    """10,000 x 0.00030000000000000003 is 3 to a float, and a budget of 0.0003 would not do."""
    named = smallest_budget(floor, "flops_ratio")
    assert floor <= float(named) < floor + 1.1e-4

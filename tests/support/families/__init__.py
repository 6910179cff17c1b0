"""Small networks of many families, most of which reorder, split or mix channels; the predictor of each is `head`."""

from tests.support.families import blocks, rearranged, reused
from tests.support.families.base import Family

FAMILIES: dict[str, type[Family]] = {
    name: value
    for module in (blocks, rearranged, reused)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, Family) and value is not Family
}
"""Every family by its name."""

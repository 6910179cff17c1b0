"""What a data set is refused with."""

import pytest

from spatl.data import load_dataset
from spatl.errors import DataError


def message(dataset: str, /, **options: object) -> str:
    """The one line that loading the data set ends with."""
    with pytest.raises(DataError) as caught:
        load_dataset(dataset, seed=1, options=options)
    assert "\n" not in str(caught.value)
    return str(caught.value)

"""Tables of the user's own: what each column becomes, and one line for each mistake."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatl.data import Dataset, load_dataset
from spatl.errors import DataError

CSV = """age,city,income,who,part,sick
30,Bern,1000,ann,train,no
41.5,Basel,2000,bob,train,yes
22,Bern,1500,ann,test,no
"""


def as_list(values: torch.Tensor | None) -> list[int] | None:
    return None if values is None else values.tolist()


def write(directory: Path, text: str = CSV, name: str = "people.csv") -> str:
    (directory / name).write_text(text)
    return str(directory / name)


def read(path: str, **options: Any) -> Dataset:
    return load_dataset("table", seed=1, options={"path": path, "target": "sick", **options})


def test_columns_become_numbers_categories_owners_splits_and_classes(tmp_path: Path) -> None:
    dataset = read(write(tmp_path), owner="who", split="part", categories=["city"])
    assert dataset.images.tolist() == [[30, 0, 1, 1000], [41.5, 1, 0, 2000], [22, 0, 1, 1500]]
    assert (dataset.class_names, dataset.targets.tolist()) == (("no", "yes"), [0, 1, 0])
    assert as_list(dataset.groups) == [0, 1, 0]
    assert as_list(dataset.splits) == [0, 0, 2]
    assert dataset.scale == "feature"
    assert dataset.sizes() == {"num_classes": 2, "input_shape": (4,), "num_features": 4}


def test_columns_can_be_chosen_and_splits_pooled(tmp_path: Path) -> None:
    dataset = read(write(tmp_path), split="part", columns=["income", "age"], pool=True)
    assert dataset.images.tolist() == [[1000, 30], [2000, 41.5], [1500, 22]]
    assert dataset.splits is None


def test_named_categories_are_the_same_in_each_file(tmp_path: Path) -> None:
    dataset = read(write(tmp_path), columns=["city"], categories={"city": ["Basel", "Bern", "Chur"]})
    assert dataset.images.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]


def test_a_directory_is_one_table(tmp_path: Path) -> None:
    write(tmp_path, "a,sick\n1,0\n2,1\n", "1.csv")
    write(tmp_path, "a\tsick\n3\t1\n", "2.tsv")
    write(tmp_path, "no table", "readme.txt")
    dataset = read(str(tmp_path))
    assert (dataset.images.flatten().tolist(), dataset.targets.tolist()) == ([1, 2, 3], [0, 1, 1])


def test_a_parquet_file_is_the_same_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"age": [30.0, 41.5, 22.0], "city": ["Bern", "Basel", "Bern"], "sick": [0, 1, 0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "people.parquet")
    dataset = read(str(tmp_path / "people.parquet"), categories=["city"])
    assert dataset.images.tolist() == [[30, 0, 1], [41.5, 1, 0], [22, 0, 1]]
    with pytest.raises(DataError, match=r"'city' must hold finite numbers.*got 'Bern' in row 1 of"):
        read(str(tmp_path / "people.parquet"))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (CSV, {"target": None}, r"name the column to predict in data\.options\.target; .* has age, city, income"),
        (CSV, {"target": "sik"}, r"has no column 'sik' \(did you mean 'sick'\?\)"),
        (CSV, {"owner": "name"}, "has no column 'name'"),
        (CSV, {"columns": ["age", "sick"]}, "the column 'sick' cannot be an input and the target at once"),
        (CSV, {"columns": ["age", "age"]}, "columns names 'age' twice"),
        (CSV, {"columns": 7}, "columns must be a column's name or a list of names, got 7"),
        (CSV, {}, r"'city' must hold finite numbers; name a column of texts in .*got 'Bern' in line 2 .* and 2 others"),
        (
            CSV,
            {"columns": ["age"], "categories": ["city"]},
            "categories names 'city', which is no column that",
        ),
        (CSV, {"columns": ["city"], "categories": {"city": ["Bern"]}}, "must hold one of Bern, got 'Basel' in line 3"),
        (CSV, {"columns": ["age"], "split": "who"}, "'who' must say train, validation or test, got 'ann' in line 2"),
        (CSV, {"target": ["sick", "age"], "columns": ["income"]}, "one target, got sick, age; .*multi-label"),
        (CSV, {"delimiter": ";"}, r"has one column, 'age,city,.*': if its .* between ',', set .*delimiter: ','"),
        ("a;sick\n1;0\n", {}, r"has one column, 'a;sick': if its .* between ';', set .*delimiter: ';'"),
        ("a\tsick\n1\t0\n", {}, r"has one column, 'a\\tsick': if its cells stand between '\\t', set"),
        (CSV, {"delimiter": ";;"}, "delimiter must be one character, got ';;'"),
        (CSV, {"pool": 1}, "pool must be true or false, got 1"),
        ("a,sick\n1,0\n,1\n", {}, "'a' must hold finite numbers.*got an empty cell in line 3"),
        ("a,sick\n1,0\nnan,1\n", {}, "'a' must hold finite numbers.*got 'nan' in line 3"),
        ("a,sick\n1,0\n1e99,1\n", {}, "'a' must hold finite numbers.*got '1e99' in line 3"),
        ("a,sick\n1,0\n2, \n", {}, "'sick' must have no empty cell, got an empty cell in line 3"),
        ("a,sick\n1,0\n2\n", {}, "line 3 of .* has 1 cells, the first line names 2 columns"),
        ("a,sick\n\n1,0\n\nx,1\n", {}, "'a' must hold finite numbers.*got 'x' in line 5"),
        ('a,b,sick\n"1","u\nv",0\nx,w,1\n', {"columns": ["a"]}, "'a' must hold finite.*got 'x' in line 4"),
        ('a,sick\n"1\n",0\n2\n', {}, "line 4 of .* has 1 cells, the first line names 2 columns"),
        ("a,sick\n1_0,0\n2,1\n", {}, "'a' must hold finite numbers.*got '1_0' in line 2"),
        ("a,a,sick\n1,2,0\n", {}, "names the column 'a' twice"),
        ("a,sick\n", {}, "has no row below the columns' names"),
        ("", {}, "is empty; its first line must have the columns' names"),
        ("sick\n1\n0\n", {}, "has no column besides sick, so that a model sees nothing"),
        ('a,sick\n3,1\n"1,0\n', {}, "is no table from line 3 on: is a quote not closed"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path, text), **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_table_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no table .*missing\.csv; expected a file \.csv, \.tsv, \.parquet, or a dir"):
        read(str(tmp_path / "missing.csv"))
    with pytest.raises(DataError, match="no table"):
        read(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="is no Parquet file that can be read"):
        read(str(tmp_path / "a.parquet"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no text in UTF-8, for it has a byte 0xff: write it anew in that"):
        read(str(tmp_path / "b.csv"))
    write(tmp_path, "a,sick\n1,0\n", "c/1.csv") if (tmp_path / "c").mkdir() is None else None
    write(tmp_path, "b,sick\n1,0\n", "c/2.csv")
    with pytest.raises(DataError, match=r"2\.csv has other columns than .*1\.csv: a, b"):
        read(str(tmp_path / "c"))


def test_whole_numbers_make_classes_in_their_order(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, "a,sick\n" + "".join(f"{n},{n % 11}\n" for n in range(22))))
    assert dataset.class_names == tuple(map(str, range(11)))
    assert np.array_equal(dataset.targets.numpy(), np.arange(22) % 11)
    assert dataset.images.dtype == torch.float32


def test_truths_are_1_and_0_as_in_parquet(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,sick\nTrue,0\nfalse,1\n")
    assert read(str(tmp_path / "t.csv")).images.tolist() == [[1], [0]]

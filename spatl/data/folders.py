"""Meaning of the folders above an image: its class, and perhaps its owner and the split it was published in.

Three layouts are usual: `CLASS/...`, `OWNER/CLASS/...`, and either below `train`, `test` or `val`. They are told apart
by names and by what repeats: owners have the same classes in them, splits have names of their own. What fits none of
them is refused with what was found, because each guess makes another task of the same files.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from spatl.data.dataset import SPLITS
from spatl.data.labels import listed
from spatl.errors import DataError
from spatl.pixels.files import SUFFIXES

LAYOUTS: Final = ("auto", "classes", "owners")

_TRAIN, _VALIDATION, _TEST = SPLITS
_SPLIT_OF: Final = {
    "train": _TRAIN, "training": _TRAIN,
    "val": _VALIDATION, "valid": _VALIDATION, "validation": _VALIDATION, "dev": _VALIDATION,
    "test": _TEST, "testing": _TEST,
}  # fmt: skip
_ARCHIVERS = "__MACOSX"  # what macOS puts beside the files in an archive


@dataclass(frozen=True)
class Filed:
    """Image file with the class, owner and split that the folders above it say.

    Attributes:
        path: The file.
        folders: Names of the folders between the root and the file that nothing is made of yet.
        label: The class.
        owner: Whose it is, or None.
        split: One of `SPLITS`, or None.
    """

    path: Path
    folders: tuple[str, ...]
    label: str = ""
    owner: str | None = None
    split: str | None = None


def filed_images(root: Path, layout: str) -> tuple[list[Filed], tuple[str, ...]]:
    """Return the images below a directory in the order of their paths, and what to tell of how they are understood.

    Args:
        root: The directory.
        layout: `classes`: the folders in `root` are classes, whatever they are called; `owners`: those are owners, and
            the ones in these classes; `auto`: as they look. But for the first, folders of splits may stand above or
            below the owners or classes.

    Raises:
        DataError: There are none, or they look like no layout, or like more than one.
    """
    files, empty, others = _walk(root)
    remarks = [f"folder: no images in {listed(empty)}, passed over"] if empty else []
    if loose := [file for file in files if not file.folders]:
        remarks.append(f"folder: passed over {len(loose)} images in {root} itself, where no folder says their class")
    files = [file for file in files if file.folders]
    if not files:
        found = f"{len(loose)} images in no folder" if loose else f"files of {listed(others) or 'no kind at all'}"
        raise DataError(
            f"folder: {root} must hold subfolders with images ({', '.join(SUFFIXES)}), one per class, got {found}"
        )
    if layout == "auto":
        files, told = _unwrapped(root, files)
        remarks += told
    if layout != "classes":
        files = _without_splits(root, files)
    if layout == "owners" or (layout == "auto" and _has_owners(root, files)):
        files = [_owned(root, file) for file in files]
        if layout == "auto":
            owners, classes = {str(file.owner) for file in files}, {file.label for file in files}
            remarks.append(
                f"folder: the folders in {root} are taken for {len(owners)} owners ({listed(sorted(owners))}) of "
                f"{len(classes)} classes ({listed(sorted(classes))}), whom the partition natural makes clients: set "
                "data.options.layout to owners, or to classes if they are the classes"
            )
    else:
        files = [replace(file, label=file.folders[0]) for file in files]
    return files, (*remarks, *_about_splits(files))


def _about_splits(files: Sequence[Filed]) -> list[str]:
    counts = {split: sum(file.split == split for file in files) for split in SPLITS}
    if not any(counts.values()):
        return []
    told = ", ".join(f"{count:,} of {split}" for split, count in counts.items() if count)
    remarks = [f"folder: the splits are kept as they are filed: {told} (data.options.pool: true pools them)"]
    unlearnt = {file.label for file in files} - {file.label for file in files if file.split == _TRAIN}
    if unlearnt:
        remarks.append(f"folder: no training example of the classes {listed(sorted(unlearnt))}")
    return remarks


def _walk(root: Path) -> tuple[list[Filed], list[str], list[str]]:
    """Return the images below a directory, the topmost folders that hold none, and what other files end in.

    Links are followed.
    """
    files: list[Filed] = []
    folders: list[tuple[str, ...]] = []
    others: set[str] = set()
    seen: set[str] = set()
    for path, names, contents in os.walk(root, followlinks=True, onerror=_raise):
        real = os.path.realpath(path)
        if real in seen:  # a link that leads back
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith(".") and name != _ARCHIVERS)
        parts = Path(path).relative_to(root).parts
        folders.append(parts)
        for name in contents:
            if name.startswith(".") or not Path(path, name).is_file():
                continue
            if (suffix := Path(name).suffix.lower()) in SUFFIXES:
                files.append(Filed(Path(path, name), parts))
            else:
                others.add(suffix or name)
    holding = {file.folders[:depth] for file in files for depth in range(len(file.folders) + 1)}
    empty = ["/".join(each) for each in folders if each and each not in holding and each[:-1] in holding]
    return sorted(files, key=lambda file: file.path), sorted(empty), sorted(others)


def _raise(error: OSError) -> None:
    raise error


def _unwrapped(root: Path, files: list[Filed]) -> tuple[list[Filed], list[str]]:
    """Return the files without a single folder around all others, as archives have it."""
    wrappers: list[str] = []
    while len({file.folders[0] for file in files}) == 1 and all(len(file.folders) > 1 for file in files):
        if len({file.folders[1] for file in files}) == 1 and any(len(file.folders) == 2 for file in files):
            break  # a single class, as in CLASS/images
        wrappers.append(files[0].folders[0])
        files = [replace(file, folders=file.folders[1:]) for file in files]
    if not wrappers:
        return files, []
    return files, [f"folder: read from {Path(root, *wrappers)}, the only folder with images in {root}"]


def _without_splits(root: Path, files: list[Filed]) -> list[Filed]:
    """Return the files with their splits, which are the first folders, or those in each of these."""
    for depth in (0, 1):
        names = {file.folders[depth] if len(file.folders) > depth else "" for file in files}
        splits = {name: _SPLIT_OF[name.lower()] for name in names if name.lower() in _SPLIT_OF}
        if len(splits) == len(names) > 1 and _TRAIN in splits.values():
            return [
                replace(file, folders=_below(root, file, depth), split=splits[file.folders[depth]]) for file in files
            ]
        within = {(file.folders[0], *file.folders[1:2]) for file in files if file.folders[0] in splits}
        if depth == 0 and (len(splits) > 1 or len(within) > max(1, len(splits))):
            others = listed(sorted(names - splits.keys()))
            what = f"beside {others}" if others else "but no train"
            raise DataError(
                f"folder: {root} has {' and '.join(sorted(splits))} {what}: expected train with test or val beside it "
                "and nothing else; name that folder, or set data.options.layout to classes if these are classes"
            )
    return files


def _below(root: Path, file: Filed, depth: int) -> tuple[str, ...]:
    rest = (*file.folders[:depth], *file.folders[depth + 1 :])
    if not rest:
        raise DataError(
            f"folder: {file.path} lies in {file.folders[depth]} and in no folder of a class: expected "
            f"{root}/{file.folders[depth]}/CLASS/{file.path.name}"
        )
    return rest


def _has_owners(root: Path, files: Sequence[Filed]) -> bool:
    """Return whether the first folders are owners of the second ones, which are classes then.

    Raises:
        DataError: That cannot be told.
    """
    inner: dict[str, set[str]] = {}
    for file in files:
        inner.setdefault(file.folders[0], set()).update(file.folders[1:2])
    names = set().union(*inner.values())
    shallow = [file for file in files if len(file.folders) < 2]
    if len(names) < 2:  # as in CLASS/images
        return False
    if len(inner) > 1 and sum(map(len, inner.values())) > len(names):
        if not shallow:
            return True
        raise DataError(
            f"folder: the folders in {root} look like owners of the classes {listed(sorted(names))}, but "
            f"{shallow[0].path} lies in none of these: set data.options.layout to classes if "
            f"{listed(sorted(inner))} are the classes, or move what has none"
        )
    if shallow:
        return False
    raise DataError(
        f"folder: the folders in {root} ({listed(sorted(inner))}) hold folders of images ({listed(sorted(names))}), no "
        "two alike: set data.options.layout to classes if the former are the classes, or to owners if the latter are"
    )


def _owned(root: Path, file: Filed) -> Filed:
    if len(file.folders) < 2:
        raise DataError(f"folder: expected {root}/OWNER/CLASS/IMAGE, got {file.path}; is data.options.layout classes?")
    return replace(file, owner=file.folders[0], label=file.folders[1])


def each_of(files: Sequence[Filed], classes: Sequence[str]) -> Iterator[Filed]:
    """Yield the files class by class."""
    for label in classes:
        yield from (file for file in files if file.label == label)

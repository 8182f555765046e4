"""HDF5 files from elsewhere: whether their arrays can be read at all, before anything reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import h5py

__all__ = ['check_sizes', 'numbers']

RATIO = 1000
"""Bytes that a byte of a compressed file can stand for; arrays that would be larger were never written."""


def check_sizes(file: h5py.File, path: Path) -> None:
    """ValueError if the file links elsewhere, or declares more numbers than it can hold: reading them would fill the memory."""
    import h5py

    most = RATIO * path.stat().st_size

    left, seen = [file], set()
    while left:
        group = left.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f'{name} is a link to elsewhere')
            found = group[name]
            if isinstance(found, h5py.Dataset) and found.nbytes > most:
                raise ValueError(f'{name} says that it has the shape {found.shape}, more than the file can hold')
            address = h5py.h5o.get_info(found.id).addr
            if isinstance(found, h5py.Group) and address not in seen:  # a group may hold itself
                seen.add(address)
                left.append(found)


def numbers(group: h5py.Group, name: str) -> NDArray[np.generic]:
    """The array of this name; ValueError if it holds anything but numbers and truth values, KeyError if there is none."""
    import h5py

    found = group[name]
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in 'fiub':
        raise ValueError(f'{name} is not an array of numbers')
    return found[()]

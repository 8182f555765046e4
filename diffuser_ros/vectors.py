"""Named vectors: the messages to and from a robot that is not an arm. Nothing here keeps state or talks to ROS."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import NamedVector
from numpy.typing import ArrayLike, NDArray
from std_msgs.msg import Header

__all__ = ['named_vector', 'ordered', 'values_by_name']


def named_vector(names: Sequence[str], values: ArrayLike, stamp: Time) -> NamedVector:
    """NamedVector of `values` (n,), one a name."""
    return NamedVector(header=Header(stamp=stamp), names=list(names), values=np.asarray(values, dtype=np.float64).tolist())


def values_by_name(message: NamedVector, what: str) -> dict[str, float]:
    """The message's values by name; ValueError, one sentence that calls the message `what`, for unequal lengths, repeated names
    and values that are not finite."""
    names, values = list(message.names), list(message.values)
    if len(names) != len(values):
        raise ValueError(f'{what} has {len(names)} names and {len(values)} values')
    found = dict(zip(names, values))
    if len(found) != len(names):
        raise ValueError(f'{what} names {", ".join(sorted({n for n in names if names.count(n) > 1}))} more than once')
    for name, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f'{what}: {name} is {value}, not a finite number')
    return found


def ordered(message: NamedVector, names: Sequence[str], what: str) -> NDArray[np.float64]:
    """The message's values (n,) in the order of `names`, which must be the message's, in any order; ValueError as above."""
    found = values_by_name(message, what)
    if found.keys() != set(names):
        raise ValueError(f'{what} must name {", ".join(names)}, got {", ".join(found) or "nothing"}')
    return np.array([found[name] for name in names], dtype=np.float64)

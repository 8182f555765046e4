"""Error messages about untrusted input: one line, however large or strange what it is about."""

from __future__ import annotations

import reprlib

__all__ = ['one_line', 'shown']

LONGEST = 300
"""Characters of a message's part."""


class _Repr(reprlib.Repr):
    """At most three levels of six entries: aliases in YAML can make a few lines into more than fits into memory."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 256 else f'a whole number of {x.bit_length()} bits'


_short = _Repr()


def shown(value: object) -> str:
    """`repr(value)`, shortened."""
    return one_line(_short.repr(value))


def one_line(message: object) -> str:
    """The text of a message or of an error, its white space as single blanks, cut off when it is too long for a line."""
    text = ' '.join(str(message).split())
    return text if len(text) <= LONGEST else f'{text[:LONGEST - 4]} ...'

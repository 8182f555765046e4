"""The text that describes a message type to those who do not have it: what MCAP calls a 'ros2msg' schema."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from ament_index_python.packages import get_package_share_directory

__all__ = ['message_definition']

SEPARATOR = '\n' + 80 * '=' + '\n'
NESTED = re.compile(r'^ *(?:(\w+)/(?:msg/)?)?([A-Z]\w*)(?:\[[<=\d]*\])?\s', re.MULTILINE)
"""A field whose type is a message, of a named package or of the same; types that are none have small letters."""


@cache
def message_definition(name: str) -> str:
    """The definition of 'package/msg/Name', followed by those of the messages in it, as MCAP wants it.

    PackageNotFoundError or OSError if a package or its file is not installed.
    """
    texts = {name: _text(name)}
    pending = [name]
    while pending:
        outer = pending.pop()
        for package, message in NESTED.findall(texts[outer]):
            nested = f'{package or outer.partition("/")[0]}/msg/{message}'
            if nested not in texts:
                texts[nested] = _text(nested)
                pending.append(nested)
    first, *others = texts
    return texts[first] + ''.join(f'{SEPARATOR}MSG: {_short(other)}\n{texts[other]}' for other in others)


def _text(name: str) -> str:
    package, _, message = name.split('/')
    return (Path(get_package_share_directory(package)) / 'msg' / f'{message}.msg').read_text(encoding='utf-8')


def _short(name: str) -> str:
    package, _, message = name.split('/')
    return f'{package}/{message}'

"""YAML configuration, read into frozen dataclasses; anything unknown or of the wrong type is refused by name."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

__all__ = ['ConfigError', 'from_mapping', 'load_config', 'to_mapping']

T = TypeVar('T')


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and what is allowed."""


def load_config(kind: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read `path` into the dataclass `kind`; `overrides` are 'key.subkey=value' with YAML values."""
    try:
        fields = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise ConfigError(f'cannot read the configuration {path}: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path} is not valid YAML: {" ".join(str(error).split())}') from error
    if not isinstance(fields, dict):
        raise ConfigError(f'{path} must hold keys and values, not {type(fields).__name__}')
    for override in overrides:
        key, separator, value = override.partition('=')
        if not separator:
            raise ConfigError(f'an override is written key=value, got {override!r}')
        node: Any = fields
        *above, last = key.split('.')
        for name in above:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f'the override {override!r} goes below {name!r}, which is a value')
        node[last] = yaml.safe_load(value)
    return from_mapping(kind, fields, str(path))


def from_mapping(kind: type[T], fields: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `kind` from plain values; ConfigError naming `where` and the key."""
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in fields:
        if key not in known:
            raise ConfigError(f'{where}: unknown key {key!r}; allowed here: {", ".join(known)}')
    for name, field in known.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in fields:
            raise ConfigError(f'{where}: the key {name!r} is missing')
    values = {key: _convert(hints[key], value, f'{where}: {key}') for key, value in fields.items()}
    try:
        return kind(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f'{where}: {error}') from error


def to_mapping(config: Any) -> dict[str, Any]:
    """Plain values of a dataclass, fit for YAML; inverse of `from_mapping`."""
    return {k: _plain(v) for k, v in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f'{where} must hold keys and values, got {value!r}')
        return from_mapping(hint, value, where)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _convert(inner, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f'{where} must be a list, got {value!r}')
        return tuple(_convert(arguments[0], v, f'{where}[{n}]') for n, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f'{where} must hold keys and values, got {value!r}')
        return {_convert(arguments[0], k, where): _convert(arguments[1], v, f'{where}.{k}') for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f'{where} must be of type {hint.__name__}, got {value!r}')
    return value

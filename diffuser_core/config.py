"""YAML configuration, read into frozen dataclasses; anything unknown or of the wrong type is refused by name."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from diffuser_core.messages import one_line, shown

__all__ = ['ConfigError', 'from_mapping', 'load_config', 'parse_yaml', 'to_mapping']

T = TypeVar('T')


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and what is allowed."""


class _Loader(yaml.SafeLoader):
    """Without whole numbers of thousands of digits, which Python reads in base 16 but does not print."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node)
        if number.bit_length() > 128:
            raise yaml.constructor.ConstructorError(None, None, 'a whole number has more than 128 bits', node.start_mark)
        return number


_Loader.add_constructor('tag:yaml.org,2002:int', _Loader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """Plain values of YAML text; ConfigError, saying why, if it is none."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ConfigError('it is nested too deeply') from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        # PyYAML lets through whatever Python says to '!!int x' or to the date 2001-13-45
        raise ConfigError(one_line(error)) from error


def load_config(kind: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read `path` into the dataclass `kind`; `overrides` are 'key.subkey=value' with YAML values."""
    try:
        fields = parse_yaml(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise ConfigError(f'cannot read the configuration {path}: {error.strerror}') from error
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path} is not valid YAML: {one_line(error)}') from error
    if not isinstance(fields, dict):
        raise ConfigError(f'{path} must hold keys and values, not {type(fields).__name__}')
    for override in overrides:
        key, separator, value = override.partition('=')
        if not separator:
            raise ConfigError(f'an override is written key=value, got {shown(override)}')
        node: Any = fields
        *above, last = key.split('.')
        for name in above:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f'the override {shown(override)} goes below {shown(name)}, which is a value')
        try:
            node[last] = parse_yaml(value)
        except ConfigError as error:
            raise ConfigError(f'the override {shown(override)} is not valid YAML: {error}') from error
    return from_mapping(kind, fields, str(path))


def from_mapping(kind: type[T], fields: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `kind` from plain values; ConfigError naming `where` and the key."""
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in fields:
        if key not in known:
            raise ConfigError(f'{where}: unknown key {shown(key)}; allowed here: {", ".join(known)}')
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
        raise ConfigError(f'{where}: {one_line(error)}') from error


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
            raise ConfigError(f'{where} must hold keys and values, got {shown(value)}')
        return from_mapping(hint, value, where)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _convert(inner, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f'{where} must be a list, got {shown(value)}')
        return tuple(_convert(arguments[0], v, f'{where}[{n}]') for n, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f'{where} must hold keys and values, got {shown(value)}')
        return {_convert(arguments[0], k, where): _convert(arguments[1], v, f'{where}.{one_line(k)}') for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f'{where} is too large: {shown(value)}') from error
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f'{where} must be of type {hint.__name__}, got {shown(value)}')
    return value

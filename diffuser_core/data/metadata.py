"""Metadata of data sets from elsewhere: they name the environment, and reading a data set makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium

from diffuser_core.messages import shown

__all__ = ['check_environment']

TRUSTED = ('gymnasium.', 'gymnasium_robotics.', 'diffuser_core.envs.')
"""Where environments and their wrappers may come from without being registered."""


def check_environment(path: Path) -> None:
    """ValueError unless the environment that the metadata in the file `path` describe is registered or of a trusted package: an
    entry point may name any function of any module, and Minari has gymnasium call it."""
    metadata = json.loads(path.read_text(encoding='utf-8'))
    for key in ('env_spec', 'eval_env_spec'):
        if metadata.get(key) is not None:
            described = json.loads(metadata[key])
            for spec in (described, *described.get('additional_wrappers', ())):
                if not _trusted(spec):
                    raise ValueError(f'{key} has the entry point {shown(spec.get("entry_point"))}, which is neither registered '
                                     f'nor of {", ".join(TRUSTED)}')


def _trusted(spec: dict[str, Any]) -> bool:
    entry = spec.get('entry_point')
    registered = gymnasium.registry.get(str(spec.get('id')))
    return isinstance(entry, str) and (entry.startswith(TRUSTED) or registered is not None and entry == registered.entry_point)

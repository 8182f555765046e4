"""Where the files that come with the project are: in a checkout, or installed below share/diffuser_ros."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ['checkpoint_folder', 'config_folder']


def config_folder() -> Path:
    """The folder `config/` of this checkout, or of the first installed prefix that has one."""
    prefixes = [Path(p) for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    checkout = Path(__file__).resolve().parents[1] / 'config'
    installed = [prefix / 'share' / 'diffuser_ros' / 'config' for prefix in (*prefixes, Path(sys.prefix))]
    for folder in (checkout, *installed):
        if (folder / 'kuka_stack.yaml').is_file():
            return folder
    raise FileNotFoundError(f'the folder config/ of diffuser_ros was found neither at {checkout} nor in '
                            f'{", ".join(map(str, installed))}; is the package installed?')


def checkpoint_folder(name: str) -> Path:
    """The shipped checkpoint of this name."""
    return config_folder() / 'checkpoints' / name

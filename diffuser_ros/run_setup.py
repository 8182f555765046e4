"""What the bits of a command depend on beside the observations: parameters, the checkpoint's files, what the network runs on."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffuser_core import __version__

__all__ = ['Setup', 'backend_here', 'checkpoint_digest']


@dataclass(frozen=True)
class Setup:
    """A policy as it is made.

    parameters     the node's, by name; plain numbers, texts and truth values
    checkpoint     the folder in use, also where the parameters leave it open
    backend        what the network runs on, as `backend_here` says
    seed           that the policy begins with
    robot          'kuka' or 'gym'
    command_names  what the columns of a tick's command are
    """

    parameters: Mapping[str, Any]
    checkpoint: Path
    backend: str
    seed: int
    robot: str
    command_names: Sequence[str] = ()

    def described(self) -> dict[str, Any]:
        """As JSON, with the checkpoint's digest and the versions of the libraries; OSError if the checkpoint cannot be read."""
        return {
            'parameters': dict(self.parameters), 'checkpoint': str(self.checkpoint), 'digest': checkpoint_digest(self.checkpoint),
            'version': __version__, 'backend': self.backend, 'seed': int(self.seed), 'robot': self.robot,
            'command_names': list(self.command_names),
            'environment': {'python': platform.python_version(), **{name: version(name) for name in ('numpy', 'torch')}}}


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 over names and contents of all files in a checkpoint's folder; OSError if it cannot be read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f'the checkpoint {folder} is no folder')
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        for part in (path.relative_to(folder).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, 'little') + part)
    return digest.hexdigest()


def backend_here(parameters: Mapping[str, Any]) -> str:
    """What a network with these node parameters (`backend`, `device`, `threads`) runs on here, as one line.

    Equal lines mean equal bits: see docs/record_replay.md. ValueError for a device that this machine lacks.
    """
    import torch

    backend, device = str(parameters['backend']), torch.device(parameters['device'])
    package = 'openvino' if backend.startswith('openvino') else 'torch'
    library = f'{package} {version(package)}'
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise ValueError(f'the device {parameters["device"]!r} is not on this machine')
        return f'{backend} on {torch.cuda.get_device_name(device)}, {library}, CUDA {torch.version.cuda}'
    capability = torch.backends.cpu.get_cpu_capability()  # 'AVX2', 'AVX512', ...: kernels differ in the order of their sums
    return f'{backend} on {device.type} with {capability}, threads {parameters["threads"]}, {library}'

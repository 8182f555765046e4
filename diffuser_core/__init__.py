"""Receding-horizon planning by trajectory diffusion (Janner et al., ICML 2022)."""

from importlib import import_module
from typing import Any

__version__ = '0.1.0'

__all__ = ['Channels', 'Checkpoint', 'CheckpointError', 'Conditions', 'Guide', 'Plan', 'Planner', 'RecedingHorizon', 'Sampling',
           '__version__']

_HOME = {'Channels': 'trajectory', 'Plan': 'trajectory', 'Checkpoint': 'checkpoint', 'CheckpointError': 'checkpoint',
         'Conditions': 'conditions', 'Guide': 'guides', 'Planner': 'planner', 'RecedingHorizon': 'receding_horizon',
         'Sampling': 'planner'}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f'diffuser_core.{_HOME[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

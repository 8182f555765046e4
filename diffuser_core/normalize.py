"""Maps physical units to the range in which the model works; fitted once and stored in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ['Normalizer']

KINDS = ('limits', 'gaussian', 'identity')


@dataclass(frozen=True)
class Normalizer:
    """Affine map a channel: `normal = (physical - offset) / scale`.

    kind   'limits' maps the data's minimum and maximum to -1 and 1, 'gaussian' its mean and deviation to 0 and 1
    offset (channels,), physical units
    scale  (channels,), physical units, never zero
    """

    kind: str
    offset: torch.Tensor
    scale: torch.Tensor

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f'unknown normaliser {self.kind!r}; there are {", ".join(KINDS)}')
        if self.offset.shape != self.scale.shape or self.offset.dim() != 1:
            raise ValueError(f'a normaliser needs one offset and one scale a channel, got shapes '
                             f'{tuple(self.offset.shape)} and {tuple(self.scale.shape)}')
        if not bool(torch.isfinite(self.offset).all() and torch.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError('a normaliser needs finite offsets and positive finite scales')

    @classmethod
    def fit(cls, kind: str, values: np.ndarray, least_scale: float = 1e-6) -> Normalizer:
        """Fit to `values` (rows, channels); ValueError if empty or not finite.

        No scale is smaller than `least_scale`: otherwise a channel that only trembles is blown up to the full range.
        """
        if values.ndim != 2 or len(values) == 0 or not np.isfinite(values).all():
            raise ValueError('a normaliser is fitted to a non-empty (rows, channels) array of finite numbers')
        data = values.astype(np.float64)
        if kind == 'limits':
            low, high = data.min(axis=0), data.max(axis=0)
            offset, scale = (high + low) / 2, (high - low) / 2
        elif kind == 'gaussian':
            offset, scale = data.mean(axis=0), data.std(axis=0)
        else:
            offset, scale = np.zeros(data.shape[1]), np.ones(data.shape[1])
        scale = np.maximum(scale, least_scale)
        return cls(kind, torch.from_numpy(offset).float(), torch.from_numpy(scale).float())

    def to(self, device: torch.device | str) -> Normalizer:
        """The same map on another device."""
        return Normalizer(self.kind, self.offset.to(device), self.scale.to(device))

    def normalize(self, values: torch.Tensor) -> torch.Tensor:
        """Physical to normal; last axis = channels."""
        return (values - self.offset) / self.scale

    def denormalize(self, values: torch.Tensor) -> torch.Tensor:
        """Normal to physical; last axis = channels."""
        return values * self.scale + self.offset

    def as_dict(self) -> dict[str, object]:
        """Plain numbers for the checkpoint."""
        return {'kind': self.kind, 'offset': self.offset.tolist(), 'scale': self.scale.tolist()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Normalizer:
        """Inverse of `as_dict`."""
        return cls(str(fields['kind']), torch.tensor(fields['offset'], dtype=torch.float32),
                   torch.tensor(fields['scale'], dtype=torch.float32))

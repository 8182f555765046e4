"""Confidence intervals and latencies over episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ['mean_interval', 'median_quantiles', 'quantiles']


def mean_interval(values: np.ndarray, confidence: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """Bootstrap percentile interval of the mean of `values` (episodes,); always the same for the same values."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f'an interval needs a non-empty list of values, got shape {values.shape}')
    draws = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


def quantiles(values: Sequence[float], digits: int = 15) -> dict[str, float | None]:
    """'p50' and 'p99' of the values, to so many digits after the point; None if there are none."""
    found = np.percentile(values, (50, 99)).round(digits).tolist() if len(values) else (None, None)
    return dict(zip(('p50', 'p99'), found))


def median_quantiles(times: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Medians over episodes of each episode's 'p50' and 'p99'; None if there is none with times."""
    known = {q: [value for episode in times if (value := episode[q]) is not None] for q in ('p50', 'p99')}
    return {q: float(np.median(values)) if values else None for q, values in known.items()}

"""What the time of a plan is measured against, and the table that says which aims are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ['AIMS', 'Aim', 'format_aims']

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Aim:
    """A bound on the ratio of some rows of the benchmark.

    rows   what the names of their cases hold, e.g. 'same' or 'candidates 256'
    bound  the ratio is at least that; with `growth`, a time over the first one's, at most that
    """

    what: str
    rows: str
    bound: float
    growth: bool = False

    def met(self, ratio: float) -> bool:
        """Whether a row with this ratio meets it."""
        return ratio <= self.bound if self.growth else ratio >= self.bound


AIMS = {
    'cpu': (Aim('same weights and steps', 'same', 3.0), Aim('as shipped', 'ours', 200.0),
            Aim('horizon 128 to 1024, linear', 'horizon 1024', 8.0, growth=True)),
    'cuda': (Aim('same weights and steps', 'same', 5.0), Aim('as shipped', 'ours', 200.0),
             Aim('horizon 128 to 1024, linear', 'horizon 1024', 8.0, growth=True),
             Aim('candidates 1 to 256', 'candidates 256', 2.0, growth=True)),
}


def format_aims(rows: Sequence[Row], device: str) -> str:
    """A line for every aim and task that was measured: the best backend's ratio, and whether that meets the aim."""
    lines = [f'{"aim":<28} {"bound":>9} {"case":<26} {"backend":<14} {"measured":>9}  met']
    for aim in AIMS[device]:
        best: dict[str, Row] = {}
        for row in rows:
            task = row['case'].split()[0] if not aim.growth else row['case']
            if aim.rows not in row['case']:
                continue
            if task not in best or (row['ratio'] < best[task]['ratio'] if aim.growth else row['ratio'] > best[task]['ratio']):
                best[task] = row
        bound = f'{"<=" if aim.growth else ">="} {aim.bound:g}x'
        for row in best.values():
            lines.append(f'{aim.what:<28} {bound:>9} {row["case"]:<26} {row["backend"]:<14} {row["ratio"]:>8.2f}x  '
                         f'{"yes" if aim.met(row["ratio"]) else "no"}')
    return '\n'.join(lines)

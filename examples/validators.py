"""Two validators that a user would want, and what they do to plans of a point in the plane.

    python examples/validators.py

The planner node asks a validator about every plan if its parameter names one, as `my_package.my_checks:table` does for a module
my_checks with the line `table = within_box((0.3, -0.5, 0.02), (0.8, 0.5, 0.9), ('tip.x', 'tip.y', 'tip.z'))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffuser_core.trajectory import Plan
from diffuser_ros.validator import Validated, Verdict, load_validator

Validate = Callable[[Plan, Mapping[str, float], Any], tuple[Verdict, str]]


def within_box(low: Sequence[float], high: Sequence[float], channels: Sequence[str],
               otherwise: Verdict = Verdict.ANOTHER) -> Validate:
    """Plans whose `channels` stay between `low` and `high`, both (channels,), in every row; to others it says `otherwise`."""
    least, most = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
    if not least.shape == most.shape == (len(channels),) or not (least < most).all():
        raise ValueError(f'a box in {len(channels)} channels needs as many low and high ends, each low one below the high one')

    def validate(plan: Plan, observation: Mapping[str, float], goal: Any) -> tuple[Verdict, str]:
        values = plan.values[:, plan.channels.indices(channels)]
        beyond = np.maximum(least - values, values - most)
        row, column = np.unravel_index(int(beyond.argmax()), beyond.shape)
        if beyond[row, column] <= 0.0:
            return Verdict.ACCEPT, ''
        return otherwise, (f'{channels[column]} is {values[row, column]:.3f} after {row * plan.step_dt:.2f} s, '
                           f'not between {least[column]:g} and {most[column]:g}')

    return validate


def clear_of(circles: Sequence[tuple[float, float, float]], channels: tuple[str, str] = ('x', 'y'),
             otherwise: Verdict = Verdict.ANOTHER) -> Validate:
    """Plans that keep out of all `circles` (x, y, radius) [m], also on the straight line from one row to the next; to others it
    says `otherwise`. A plan that begins inside of one may leave it."""
    discs = np.array(circles, dtype=np.float64).reshape(-1, 3)
    if not (np.isfinite(discs).all() and (discs[:, 2] > 0.0).all()):
        raise ValueError('circles are x, y and a positive radius, finite numbers')

    def validate(plan: Plan, observation: Mapping[str, float], goal: Any) -> tuple[Verdict, str]:
        places = plan.values[:, plan.channels.indices(channels)]
        begin, way = places[:, None], np.diff(places, axis=0, append=places[-1:])[:, None]  # (rows, 1, 2) against (circles, 2)
        share = ((discs[:, :2] - begin) * way).sum(-1) / np.maximum((way ** 2).sum(-1), 1e-12)
        nearest = begin + share.clip(0.0, 1.0)[..., None] * way
        distance = np.linalg.norm(nearest - discs[:, :2], axis=-1)  # (rows, circles)
        outside = np.logical_or.accumulate(~(np.linalg.norm(begin - discs[:, :2], axis=-1) < discs[:, 2]), axis=0)
        depth = np.where(outside, discs[:, 2] - distance, 0.0)
        if (depth <= 0.0).all():
            return Verdict.ACCEPT, ''
        step, disc = np.unravel_index(int(depth.argmax()), depth.shape)
        x, y, radius = discs[disc]
        return otherwise, (f'it comes within {distance[step, disc]:.3f} m of ({x:g}, {y:g}) after {step * plan.step_dt:.2f} s, '
                           f'{radius:g} m are to be kept')

    return validate


in_the_plane = within_box((-1.05, -1.05), (1.05, 1.05), ('x', 'y'))
around_the_disc = clear_of([(-0.6, 0.1, 0.2)])


def main() -> None:
    """Draw plans from one place until a validator accepts one, for some seeds, and print how many that took."""
    import torch

    from diffuser_core import Planner
    from diffuser_core.shipped import checkpoint_folder

    torch.set_num_threads(1)
    planner = Planner.from_checkpoint(checkpoint_folder('properties_wall'))
    start = np.array([-0.6, -0.6])
    for name in ('in_the_plane', 'around_the_disc'):
        validated = Validated(load_validator(f'validators:{name}'), most=20)
        choices = []
        for seed in range(20):
            planner.reseed(seed)
            choices.append(validated.choose(lambda: planner.plan(start), {}, None, plan_of=lambda plan: plan))
        drawn = sum(choice.attempts for choice in choices)
        print(f'{name}: {sum(choice.accepted for choice in choices)} of {len(choices)} accepted, {drawn} plans drawn')
    through = planner.plan(start, planner.conditions().known(-1, planner.channels, {'x': -0.6, 'y': 0.6}))
    print(load_validator('validators:around_the_disc')(through, {}, None).text)


if __name__ == '__main__':
    main()

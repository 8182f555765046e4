"""Figure 7 of the paper: score against denoising steps a plan, with and without a warm start, with the time of a plan.

    python benchmarks/denoising_steps.py --robot hopper --steps 1 2 3 5 10 20 --episodes 15

Writes `figure7_<robot>.png` and `.json` to --out; each point is a run of the locomotion suite in a folder there, and is not run
again. Bands are 95 % intervals over episodes. The times hold for a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffuser_core.envs.locomotion import ROBOTS
from diffuser_core.envs.locomotion_policy import LocomotionSettings
from diffuser_core.evaluate.locomotion import LocomotionSuite, evaluate_locomotion

STARTS = ('from the last plan', 'from noise')


def points(options: argparse.Namespace, command: str) -> list[dict[str, Any]]:
    """The suite's row of every point, with its denoising steps and how its plans start."""
    found = []
    ours = LocomotionSettings(candidates=options.candidates, aim=options.aim)
    for start in STARTS:
        for steps in options.steps:
            warm = start == STARTS[0]
            sampling = replace(ours.sampling, warm_steps=steps) if warm else replace(ours.sampling, steps=steps)
            suite = LocomotionSuite(
                options.robot, options.quality, options.checkpoint, settings=replace(ours, warm=warm, sampling=sampling),
                episodes=options.episodes, seed_start=options.seed_start, workers=options.workers,
                replan_every=options.replan_every, backend=options.backend)
            name = f'{options.robot}_{options.quality}_{"warm" if warm else "cold"}_{steps}'
            (row,) = evaluate_locomotion(suite, options.out / name, command)['rows']
            found.append({'start': start, 'steps': steps, **row})
            print(f'{start:<20}{steps:>4} steps: score {row["score"]:6.1f} ({row["ci95"][0]:.1f} - {row["ci95"][1]:.1f}), '
                  f'{row["planning_ms"]["p50"]:.1f} ms', flush=True)
    return found


def draw(found: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Scores with bands on the left axis, medians of a plan's time on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout='constrained')
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    right = left.twinx()
    for colour, start in zip(('C0', 'C1'), STARTS):
        rows = [row for row in found if row['start'] == start]
        steps = [row['steps'] for row in rows]
        low, high = np.array([row['ci95'] for row in rows]).T
        left.plot(steps, [row['score'] for row in rows], color=colour, marker='o', label=start)
        left.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        right.plot(steps, [row['planning_ms']['p50'] for row in rows], color=colour, linestyle=':')
    left.set_xscale('log')
    left.set_xticks(sorted({row['steps'] for row in found}), [str(n) for n in sorted({row['steps'] for row in found})])
    left.minorticks_off()
    left.set(xlabel='denoising steps a plan', ylabel="D4RL's score", title=title)
    right.set_ylabel('time of a plan, median [ms] (dotted)')
    right.set_yscale('log')
    left.legend(loc='lower right')
    figure.savefig(path, dpi=110)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--robot', choices=list(ROBOTS), default='hopper')
    parser.add_argument('--quality', default='medium-expert')
    parser.add_argument('--checkpoint', type=Path, default=None, help='default: the shipped one')
    parser.add_argument('--steps', type=int, nargs='+', default=[1, 2, 3, 5, 10, 20])
    parser.add_argument('--candidates', type=int, default=1, help='plans to choose from, with a return predictor')
    parser.add_argument('--aim', type=float, default=None, help='of a planner that is told the return; default: its own')
    parser.add_argument('--episodes', type=int, default=15)
    parser.add_argument('--seed-start', type=int, default=100)
    parser.add_argument('--replan-every', type=int, default=1)
    parser.add_argument('--backend', default='traced', help='how networks are executed: traced, openvino, ...')
    parser.add_argument('--workers', type=int, default=None)
    parser.add_argument('--out', type=Path, default=Path('runs/figure7'))
    options = parser.parse_args()
    try:
        found = points(options, shlex.join(['python', *sys.argv]))
    except (ValueError, OSError) as error:
        print(f'denoising_steps: {error}', file=sys.stderr)
        return 2
    best = f'best of {options.candidates}, ' if options.candidates > 1 else ''
    title = f'{options.robot}, {options.quality}, {best}{options.episodes} episodes a point'
    draw(found, title, options.out / f'figure7_{options.robot}.png')
    (options.out / f'figure7_{options.robot}.json').write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())

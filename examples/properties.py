"""Four properties of planning by diffusion (paper, section 4 and Figure 3), with a point in the plane.

    python examples/properties.py train     makes config/checkpoints/properties_* (some minutes each on one thread)
    python examples/properties.py show      plans with them, prints what docs/properties.md says and draws its picture
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from diffuser_core import Channels, Checkpoint, Plan, Planner, RecedingHorizon, Sampling, __version__
from diffuser_core.checkpoint import DiffusionConfig
from diffuser_core.diffusion import training_loss
from diffuser_core.guide_library import GoalGuide, ObstacleGuide
from diffuser_core.normalize import Normalizer
from diffuser_core.schedule import NoiseSchedule
from diffuser_core.shipped import checkpoint_folder
from diffuser_core.unet import TemporalUNet, UNetConfig

CHANNELS = Channels(('x', 'y'), ('m', 'm'))
STEP_DT = 0.1
WALL = (-0.08, -0.5, 0.08, 1.2)
"""Box that splits the plane [-1, 1] x [-1, 1] but for a passage below [m]: low x, low y, high x, high y."""
PASSAGE = np.array([0.0, -0.75])
STEP = 2.0 / 63
"""Mean of the demonstrated steps of 'lines' along x [m]."""
LEVELS = 64
EVERY_LEVEL = Sampling(steps=LEVELS, eta=1.0, resample=1)


def lines(rng: np.random.Generator, count: int, horizon: int) -> np.ndarray:
    """Pieces of straight lines from the left to the right, downwards or upwards at 45 degrees, each at a speed of its own, 0.7 to
    1.3 times the middle one; (count, horizon, 2) [m]."""
    step = STEP * rng.uniform(0.7, 1.3, (count, 1))
    x = rng.uniform(-1.0, 1.0 - step * (horizon - 1)) + step * np.arange(horizon)
    sign = rng.choice([-1.0, 1.0], (count, 1))
    return np.stack([x, sign * x + rng.uniform(-0.05, 0.05, (count, 1))], axis=-1)


def around(start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Corners of the way from `start` to `goal`: straight if the wall is not between them, else through the passage."""
    if start[0] * goal[0] > 0.0:
        return np.stack([start, goal])
    side = np.array([0.2 * np.sign(start[0]), 0.0])
    return np.stack([start, PASSAGE + side, PASSAGE - side, goal])


def walled(rng: np.random.Generator, count: int, horizon: int) -> np.ndarray:
    """Ways between random places around the wall, at random speeds, resting at their end; (count, horizon, 2) [m]."""
    ways = np.empty((count, horizon, 2))
    for way in ways:
        corners = around(*ends(rng))
        at = np.append(0.0, np.linalg.norm(np.diff(corners, axis=0), axis=1).cumsum())
        travelled = at[-1] * np.minimum(np.arange(horizon) / rng.uniform(0.6 * (horizon - 1), horizon - 1), 1.0)
        way[:, 0], way[:, 1] = (np.interp(travelled, at, corners[:, n]) for n in (0, 1))
    return ways


def ends(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A start and a goal off the wall [m]."""
    points = rng.uniform(-0.9, 0.9, (2, 2))
    points[:, 0] = np.where(np.abs(points[:, 0]) < 0.2, 0.2 * np.sign(points[:, 0]), points[:, 0])
    return points[0], points[1]


def opposite_ends(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A start and a goal with the wall between them [m]."""
    start, goal = ends(np.random.default_rng(seed))
    goal[0] = -np.sign(start[0]) * abs(goal[0])
    return start, goal


@dataclass(frozen=True)
class Recipe:
    """What a small model is made of.

    model    the network
    data     (generator, count, horizon) -> windows (count, horizon, 2) [m]
    horizons lengths of the windows it is shown, in turn
    predicts what the network predicts
    goal     share of the windows whose last step is shown
    steps    training steps
    rate     learning rate at the start; it falls to 0 along a cosine
    """

    model: UNetConfig
    data: Callable[[np.random.Generator, int, int], np.ndarray]
    horizons: tuple[int, ...]
    predicts: str
    goal: float
    steps: int
    rate: float


RECIPES = {
    'wall': Recipe(UNetConfig(32, (1, 2, 2), context=32), walled, (32, 64, 96), 'v', 0.75, 5000, 2e-3),
    'lines': Recipe(UNetConfig(32, (1,), norm='step'), lines, (48,), 'epsilon', 1.0, 3000, 3e-3),
    'lines_window': Recipe(UNetConfig(32, (1,), norm='window'), lines, (48,), 'epsilon', 1.0, 3000, 3e-3),
}


def train(name: str, folder: Path, steps: int, command: str, seed: int = 0) -> Checkpoint:
    """Train the small model `name` and save it. Windows are made with a seed of their own, 100,000 + `seed`."""
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(100_000 + seed)
    network, schedule = TemporalUNet(len(CHANNELS), recipe.model), NoiseSchedule.cosine(LEVELS)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    windows = [torch.from_numpy(recipe.data(rng, 20_000, horizon)).float() for horizon in recipe.horizons]
    losses = []
    average = {k: v.clone() for k, v in network.state_dict().items()}
    for step in range(steps):
        data = windows[step % len(windows)]
        clean = data[torch.randint(0, len(data), (32,), generator=generator)]
        mask = torch.zeros(clean.shape, dtype=torch.bool)
        mask[:, 0] = True
        mask[:, -1] = torch.rand(len(clean), 1, generator=generator) < recipe.goal
        loss = training_loss(network, clean, mask, schedule, recipe.predicts, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        keep = min(0.995, (step + 1) / (step + 10))
        for key, value in network.state_dict().items():
            average[key].lerp_(value, 1.0 - keep)
        losses.append(loss.item())
    made = {'command': command, 'steps': steps, 'loss': float(np.mean(losses[-100:])),
            'data': f'{recipe.data.__name__} of examples/properties.py, 20,000 windows a length made with seed {100_000 + seed}',
            'windows': list(recipe.horizons), 'date': datetime.date.today().isoformat(), 'version': __version__}
    checkpoint = Checkpoint(average, recipe.model, DiffusionConfig(LEVELS, recipe.predicts),
                            Normalizer('limits', torch.zeros(2), torch.ones(2)), CHANNELS,
                            recipe.horizons[len(recipe.horizons) // 2], STEP_DT, CHANNELS.names, provenance=made)
    checkpoint.save(folder)
    return checkpoint


def planner_of(name: str) -> Planner:
    """The shipped small model `name`, made ready."""
    return Planner.from_checkpoint(checkpoint_folder(f'properties_{name}'))


def plan_between(planner: Planner, start: np.ndarray, goal: np.ndarray, horizon: int = 64, **options) -> Plan:
    """A plan with both ends known."""
    return planner.plan(start, planner.conditions(horizon).known(-1, CHANNELS, dict(zip('xy', goal))), **options)


def step_lengths(path: np.ndarray) -> np.ndarray:
    """Lengths of the steps of a way (steps, 2) [m]."""
    return np.linalg.norm(np.diff(path, axis=0), axis=1)


def hits_wall(path: np.ndarray) -> bool:
    """Whether a way (steps, 2) touches the wall, on its steps or between them."""
    fine = np.concatenate([path[:-1] + share * np.diff(path, axis=0) for share in np.arange(8) / 8])
    return bool(((fine > WALL[:2]) & (fine < WALL[2:])).all(axis=1).any())


def valid(path: np.ndarray) -> bool:
    """Whether a way (steps, 2) misses the wall and makes no step longer than three times its mean one."""
    lengths = step_lengths(path)
    return not hits_wall(path) and bool(lengths.max() < 3.0 * lengths.mean())


def long_horizon(planner: Planner, seeds: range, shots: int = 10_000) -> tuple[list[np.ndarray], float, float]:
    """Plans between ends on both sides of the wall, the share of valid ones, and the share of ends between which one of
    `shots` random ways is, by the same measure and ending within 0.1 m of the goal.

    Reward is sparse: nothing on the way says which way leads there.
    """
    plans, found = [], []
    for seed in seeds:
        start, goal = opposite_ends(seed)
        planner.reseed(seed)
        plans.append(plan_between(planner, start, goal).values)
        rng = np.random.default_rng(seed)
        drift = rng.normal(0.0, 0.03, (shots, 1, 2))
        ways = start + np.cumsum(drift + rng.normal(0.0, 0.03, (shots, 64, 2)), axis=1)
        near = np.linalg.norm(ways[:, -1] - goal, axis=1) < 0.1
        found.append(any(valid(way) for way in ways[near]))
    return plans, float(np.mean([valid(path) for path in plans])), float(np.mean(found))


@dataclass(frozen=True)
class Composed:
    """What plans from the upper left to the upper right are like: one line down and another up, or not.

    along    share of the steps that run at 45 degrees, downwards on the left and upwards on the right, within 20 degrees
    longest  the longest step over the middle demonstrated one (the longest demonstrated: 1.3)
    lowest   the lowest point [m]; where the lines cross: 0
    """

    along: np.ndarray
    longest: np.ndarray
    lowest: np.ndarray

    @property
    def share(self) -> float:
        """Share of plans without a step of more than 1.5 and with a low point below half their height."""
        return float(np.mean((self.longest < 1.5) & (self.lowest < 0.5)))


def composition(planner: Planner, seeds: range, horizon: int = 72,
                sampling: Sampling = EVERY_LEVEL) -> tuple[list[np.ndarray], Composed]:
    """Plans from the upper left to the upper right, which no demonstration does, and what they are like."""
    plans, rows = [], []
    for seed in seeds:
        planner.reseed(seed)
        path = plan_between(planner, np.array([-1.0, 1.0]), np.array([1.0, 1.0]), horizon, sampling=sampling).values
        step = np.diff(path, axis=0)
        expected = np.where(path[:-1, 0] + path[1:, 0] < 0.0, -45.0, 45.0)
        angle = np.degrees(np.arctan2(step[:, 1], step[:, 0]))
        longest = step_lengths(path).max() / (np.sqrt(2.0) * STEP)
        rows.append((np.mean(np.abs(angle - expected) < 20.0), longest, path[:, 1].min()))
        plans.append(path)
    return plans, Composed(*np.array(rows).T)


def lengths(planner: Planner, horizons: Sequence[int], seeds: range) -> dict[int, tuple[float, float]]:
    """Horizon -> share of valid plans between ends on both sides of the wall, and their mean step [m]."""
    found = {}
    for horizon in horizons:
        paths = []
        for seed in seeds:
            planner.reseed(seed)
            paths.append(plan_between(planner, *opposite_ends(seed), horizon).values)
        found[horizon] = (float(np.mean([valid(p) for p in paths])), float(np.mean([step_lengths(p).mean() for p in paths])))
    return found


DISC = (-0.6, 0.1, 0.2)
"""A place to keep out of that no demonstration knew: centre and radius [m]."""
TARGET = {'x': -0.6, 'y': 0.8}
AIM = 10.0 * GoalGuide(TARGET, CHANNELS, scale={'x': 0.3, 'y': 0.3})
AVOID = 300.0 * ObstacleGuide(['x', 'y'], CHANNELS, spheres=[DISC], margin=0.05, between=1)
GUIDES = {'none': None, 'aim': AIM, 'avoid': AVOID, 'both': AIM + AVOID}


def composed(planner: Planner, seeds: range) -> dict[str, tuple[float, float, list[np.ndarray]]]:
    """Guide -> median distance of the plans' ends from the target [m], share of plans that enter the disc, plans."""
    found = {}
    for name, guide in GUIDES.items():
        plans = []
        for seed in seeds:
            planner.reseed(seed)
            plans.append(planner.plan(np.array([-0.6, -0.6]), planner.conditions(64), guide=guide,
                                      sampling=Sampling(steps=32, rule='posterior')).values)
        missed = np.median([np.linalg.norm(p[-1] - list(TARGET.values())) for p in plans])
        entered = np.mean([(np.linalg.norm(p - DISC[:2], axis=1) < DISC[2]).any() for p in plans])
        found[name] = (float(missed), float(entered), plans)
    return found


def seams(planner: Planner, seeds: range, commit: int, fade: int, sampling: Sampling) -> np.ndarray:
    """Largest changes of the step [m] around the seam, when replanning in motion; one a replan.

    Every third step the way is planned again towards the same goal, with the place measured 1 cm off. Looked at are the step
    that led there and the next ten.
    """
    jumps = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        start, goal = opposite_ends(seed)
        planner.reseed(seed)
        horizon = RecedingHorizon(planner, sampling, committed=CHANNELS.names, commit=commit, fade=fade)
        conditions = planner.conditions(64).known(-1, CHANNELS, dict(zip('xy', goal)))
        plan = horizon.update(start, conditions, 0.0)
        for n in range(3, 18, 3):
            now = n * STEP_DT
            before, here = plan.at(now + STEP_DT * np.array([-1.0, 0.0]))
            plan = horizon.update(here + rng.normal(0.0, 0.01, 2), conditions, now)
            steps = np.diff(np.vstack([before, here, plan.values[1:12]]), axis=0)
            jumps.append(np.linalg.norm(np.diff(steps, axis=0), axis=1).max())
    return np.array(jumps)


def replanned(planner: Planner, seeds: range, sampling: Sampling, ticks: int = 20) -> float:
    """Share of plans that are valid after `ticks` warm-started replans at one place, the goal staying on the last step."""
    good = []
    for seed in seeds:
        start, goal = opposite_ends(seed)
        planner.reseed(seed)
        plan = plan_between(planner, start, goal)
        for _ in range(ticks):
            plan = plan_between(planner, start, goal, warm_start=plan, sampling=sampling)
        good.append(valid(plan.values))
    return float(np.mean(good))


def turned_round(planner: Planner, seeds: range, sampling: Sampling) -> float:
    """Share of valid plans when the goal jumps to the other side of the wall and the warm start is the plan to the old one."""
    good = []
    for seed in seeds:
        start, goal = opposite_ends(seed)
        planner.reseed(seed)
        plan = plan_between(planner, start, goal * [-1.0, 1.0])
        for _ in range(3):
            plan = plan_between(planner, start, goal, warm_start=plan, sampling=sampling)
        good.append(valid(plan.values))
    return float(np.mean(good))


WARM = {'3 steps from level 32 (default)': Sampling(), '2 steps from level 32': Sampling(warm_steps=2),
        **{f'section 5.4, k = {k}': Sampling(warm_level=k / LEVELS, warm_steps=k, eta=1.0) for k in (3, 8, 16, 32)}}
SEAMS = {'nothing kept': (0, 0, False), '2 steps kept': (2, 0, False), '2 steps kept, 6 faded': (2, 6, False),
         '2 steps kept, 6 faded, through the network': (2, 6, True)}


def show(out: Path, count: int) -> None:
    """Print the figures of docs/properties.md, over `count` seeds each, and draw its picture into `out`."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    seeds = range(count)
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 4.2))
    wall = planner_of('wall')
    for axis in axes[[0, 2, 3]]:
        axis.add_patch(pyplot.Rectangle(WALL[:2], WALL[2] - WALL[0], WALL[3] - WALL[1], color='0.6'))

    plans, ours, shooting = long_horizon(wall, seeds)
    print(f'long horizon: valid plans {ours:.2f}, random shooting {shooting:.2f}')
    for path in plans[:6]:
        axes[0].plot(*path.T, '.-', ms=3, lw=0.8)
        axes[0].plot(*path[-1], '*k', ms=7)
    axes[0].set_title('both ends known, the way found')

    for path in lines(np.random.default_rng(0), 40, 48):
        axes[1].plot(*path.T, color='0.8', lw=1)
    for name, style in (('lines_window', ':'), ('lines', '.-')):
        planner = planner_of(name)
        plans, like = composition(planner, seeds)
        norm = planner.checkpoint.model.norm
        print(f'composition, norm over one {norm}: composed {like.share:.2f}; steps along the lines {like.along.mean():.2f}, '
              f'longest step {np.median(like.longest):.2f} (worst {like.longest.max():.2f}), lowest point '
              f'{np.median(like.lowest):+.2f} m')
        for path in plans[:3 if norm == 'window' else 6]:
            axes[1].plot(*path.T, style, ms=3, lw=0.8, color='k' if norm == 'window' else None)
    for what, sampling in (('every level once', replace(EVERY_LEVEL, resample=0)),
                           ('every level four times', replace(EVERY_LEVEL, resample=3)),
                           ('6 steps without noise', Sampling())):
        _, like = composition(planner, seeds, sampling=sampling)
        print(f'composition, norm over one step, {what}: composed {like.share:.2f}; longest step '
              f'{np.median(like.longest):.2f} (worst {like.longest.max():.2f}), lowest point {np.median(like.lowest):+.2f} m')
    axes[1].set_title('grey: demonstrated; coloured: planned')

    for horizon, (share, mean) in lengths(wall, (16, 24, 33, 48, 64, 96, 127, 192), seeds).items():
        print(f'horizon {horizon:>3}: valid {share:.2f}, mean step {mean:.3f} m')
    start, goal = np.array([-0.7, 0.6]), np.array([0.7, 0.6])
    wall.reseed(0)
    for horizon in (24, 64, 127):
        axes[2].plot(*plan_between(wall, start, goal, horizon).values.T, '.-', ms=4, lw=0.8, label=f'{horizon} steps')
    axes[2].legend(loc='upper right')
    axes[2].set_title('one model, any horizon')

    axes[3].add_patch(pyplot.Circle(DISC[:2], DISC[2], color='tab:red', alpha=0.3))
    axes[3].plot(*TARGET.values(), '*k', ms=9)
    for name, (missed, entered, plans) in composed(wall, seeds).items():
        hit = np.mean([hits_wall(path) for path in plans])
        print(f'guide {name:<5}: ends {missed:.2f} m from the target, {entered:.2f} enter the disc, {hit:.2f} the wall')
        for n, path in enumerate(plans[:6]):
            colour = {'none': '0.7', 'aim': 'tab:blue', 'avoid': 'tab:orange', 'both': 'tab:green'}[name]
            axes[3].plot(*path.T, '-', lw=1, color=colour, label=None if n else name)
    axes[3].legend(loc='lower right')
    axes[3].set_title('two guides, alone and added')
    for axis in axes:
        axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect='equal', xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    figure.tight_layout()
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / 'properties.png', dpi=80)

    for what, (commit, fade, through) in SEAMS.items():
        jumps = seams(wall, seeds, commit, fade, Sampling(through=through))
        print(f'seam, {what}: median jump {100 * np.median(jumps):.1f} cm, 95 % below {100 * np.quantile(jumps, 0.95):.1f} cm')
    for resample in (0, 1, 3):
        for steps in (6, 16):
            good = [valid(path) for path in resampled(wall, seeds, steps, resample)]
            print(f'resample {resample}, {steps} steps: valid {np.mean(good):.2f}')
    for what, sampling in WARM.items():
        print(f'warm start, {what}: valid after 20 replans {replanned(wall, seeds, sampling):.2f}, after a new goal '
              f'{turned_round(wall, seeds, sampling):.2f}')


def resampled(planner: Planner, seeds: range, steps: int, resample: int) -> list[np.ndarray]:
    """Plans between ends on both sides of the wall, drawn with noise on the way and every level repeated `resample` times."""
    paths = []
    for seed in seeds:
        planner.reseed(seed)
        sampling = Sampling(steps=steps, eta=1.0, resample=resample)
        paths.append(plan_between(planner, *opposite_ends(seed), sampling=sampling).values)
    return paths


def main() -> None:
    """Train or show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('verb', choices=['train', 'show'])
    parser.add_argument('--out', type=Path, help='folder for the checkpoints (default: config/checkpoints) or the picture '
                        '(default: runs/properties)')
    parser.add_argument('--seeds', type=int, default=50, help='show: plans a figure')
    parser.add_argument('--steps', type=int, help='train: training steps instead of the recipes\' own')
    parser.add_argument('--models', nargs='*', choices=list(RECIPES), default=list(RECIPES), help='train: which')
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.verb == 'show':
        return show(options.out or Path('runs/properties'), options.seeds)
    command = 'python examples/properties.py train' + (f' --steps {options.steps}' if options.steps else '')
    for name in options.models:
        folder = (options.out or checkpoint_folder('')) / f'properties_{name}'
        made = train(name, folder, options.steps or RECIPES[name].steps, command).provenance
        print(f'{name}: loss {made["loss"]:.5f} after {made["steps"]} steps', flush=True)


if __name__ == '__main__':
    main()

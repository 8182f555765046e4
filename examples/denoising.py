"""How plans come out of noise (the paper's Figure 4): several plans from one start to one goal, after every denoising step.

    python examples/denoising.py                      the large maze: runs/denoising/denoising.gif and denoising.png
    python examples/denoising.py --size umaze --seed 7 --steps 24
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from diffuser_core import Planner, Sampling
from diffuser_core.envs.maze_layout import CHANNELS, LOWER_EDGE, MazeLayout
from diffuser_core.envs.maze_picture import draw
from diffuser_core.envs.point_maze import PointMazeEnv
from diffuser_core.shipped import checkpoint_folder

SCALE = 30
"""Pixels a metre."""
STILLS = (0.0, 0.55, 0.85, 1.0)
"""How far denoising has come in the pictures side by side in the PNG."""
COLOURS = ((230, 150, 40), (38, 120, 190), (46, 150, 90), (150, 90, 190), (200, 60, 50), (90, 90, 90))


def picture(maze: MazeLayout, start: np.ndarray, goal: np.ndarray, plans: np.ndarray) -> np.ndarray:
    """The maze with the steps of plans (count, horizon, 2) as dots."""
    image = Image.fromarray(draw(maze, start, goal, scale=SCALE))
    pen = ImageDraw.Draw(image)
    for number, plan in enumerate(plans):
        for x, y in (plan + LOWER_EDGE) * SCALE:
            pen.ellipse((y - 2, x - 2, y + 2, x + 2), fill=COLOURS[number % len(COLOURS)])
    return np.asarray(image)


def main() -> None:
    """Draw plans and write both pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--size', default='large', help='umaze, medium or large')
    parser.add_argument('--seed', type=int, default=5008, help='of the start, the goal and the noise')
    parser.add_argument('--steps', type=int, default=16, help='denoising steps')
    parser.add_argument('--plans', type=int, default=6, help='plans drawn at once')
    parser.add_argument('--out', type=Path, default=Path('runs/denoising'))
    options = parser.parse_args()
    env = PointMazeEnv(options.size, multi_task=True)
    state, info = env.reset(seed=options.seed)
    planner = Planner.from_checkpoint(checkpoint_folder(f'maze2d_{options.size}'), seed=options.seed)
    goal = planner.conditions().known(-1, planner.channels, dict(zip(CHANNELS, (*info['goal'], 0.0, 0.0))))
    seen: list[np.ndarray] = []
    planner.candidates(state, goal, count=options.plans, sampling=Sampling(steps=options.steps),
                       watch=lambda _, trajectories: seen.append(trajectories[..., planner.channels.indices(CHANNELS[:2])]))
    frames = [picture(env.layout, state[:2], info['goal'], plans) for plans in seen]
    options.out.mkdir(parents=True, exist_ok=True)
    shown = (np.array(STILLS) * (len(frames) - 1)).round().astype(int)
    Image.fromarray(np.hstack([frames[n] for n in shown])).save(options.out / 'denoising.png')
    images = [Image.fromarray(frame).quantize(32) for frame in frames]
    images[0].save(options.out / 'denoising.gif', save_all=True, append_images=images[1:], loop=0,
                   duration=[120] * (len(images) - 1) + [1500])
    print(f'{len(frames)} pictures of {options.plans} plans: {options.out / "denoising.gif"}, {options.out / "denoising.png"}')


if __name__ == '__main__':
    main()

"""Two guides that the planner has never seen, alone and together: a goal as an objective, and a reward of one's own.

    python examples/guides.py
"""

import numpy as np
import torch

from diffuser_core import Planner, Sampling
from diffuser_core.guide_library import GoalGuide, RewardGuide
from diffuser_core.shipped import checkpoint_folder

AZIMUTHS = {'moved': -0.7, 'first': -1.5, 'second': 0.7, 'third': 1.5}


def main() -> None:
    """Plan from one state, without a goal, and print for each guide where arm and moved block go (means of 8 plans)."""
    torch.set_num_threads(1)
    planner = Planner.from_checkpoint(checkpoint_folder('kuka_stack'))
    channels = planner.channels
    state = {'tip.azimuth': 0.0, 'tip.radius': 0.5, 'tip.z': 0.35, 'moved.attached': 0.0}
    for block, azimuth in AZIMUTHS.items():
        state |= {f'{block}.azimuth': azimuth, f'{block}.radius': 0.6, f'{block}.z': 0.03}
    on_second = {'moved.azimuth': AZIMUTHS['second'], 'moved.radius': 0.6, 'moved.z': 0.09}

    turn = channels.indices(['tip.azimuth'])[0]
    leftwards = 0.02 * RewardGuide(lambda states, actions: states[..., turn], channels, name='leftwards')
    stacked = GoalGuide(on_second, channels, scale={'moved.azimuth': 0.2, 'moved.radius': 0.1, 'moved.z': 0.05})
    for name, guide in (('no guide', None), ('leftwards', leftwards), ('on second', stacked), ('both', leftwards + stacked)):
        planner.reseed(0)
        plans = planner.candidates(channels.vector(state), count=8, guide=guide, sampling=Sampling(steps=16, rule='posterior'))
        angle = np.mean([plan.values[:, turn].mean() for plan in plans])
        ends = np.array([plan.values[-1, channels.indices(['moved.azimuth'])[0]] for plan in plans])
        away = np.abs(ends - on_second['moved.azimuth']).mean()
        print(f'{name}: tip at {angle:+.2f} rad, moved block ends {away:.2f} rad from the second one')


if __name__ == '__main__':
    main()

"""Two guides that the planner has never seen, alone and together: a goal as an objective, and a reward of one's own.

    python examples/guides.py
"""

import numpy as np
import torch

from diffuser_core import Planner, Sampling
from diffuser_core.envs.kuka_kinematics import JOINT_NAMES, inverse_kinematics
from diffuser_core.envs.stacking import BLOCKS
from diffuser_core.guide_library import GoalGuide, RewardGuide
from diffuser_core.shipped import checkpoint_folder

AZIMUTHS = {'red': -1.5, 'green': -0.7, 'blue': 0.7, 'yellow': 1.5}


def main() -> None:
    """Plan from one state, without a goal, and print for each guide where the arm and the green block go (means of 8 plans)."""
    torch.set_num_threads(1)
    planner = Planner.from_checkpoint(checkpoint_folder('kuka_stack'))
    channels = planner.channels
    state = dict(zip(JOINT_NAMES, inverse_kinematics(0.0, 0.5, 0.35)))
    for block in BLOCKS:
        state |= {f'{block}.azimuth': AZIMUTHS[block], f'{block}.radius': 0.6, f'{block}.z': 0.03, f'{block}.attached': 0.0}
    on_blue = {'green.azimuth': AZIMUTHS['blue'], 'green.radius': 0.6, 'green.z': 0.09}

    turn = channels.indices(['lbr_iiwa_joint_1'])[0]
    leftwards = 0.02 * RewardGuide(lambda states, actions: states[..., turn], channels, name='leftwards')
    green_on_blue = GoalGuide(on_blue, channels, scale={'green.azimuth': 0.2, 'green.radius': 0.1, 'green.z': 0.05})
    for name, guide in (('no guide', None), ('leftwards', leftwards), ('green on blue', green_on_blue),
                        ('both', leftwards + green_on_blue)):
        planner.reseed(0)
        plans = planner.candidates(channels.vector(state), count=8, guide=guide, sampling=Sampling(steps=16, rule='posterior'))
        angle = np.mean([plan.values[:, turn].mean() for plan in plans])
        ends = np.array([plan.values[-1, channels.indices(['green.azimuth'])[0]] for plan in plans])
        away = np.abs(ends - on_blue['green.azimuth']).mean()
        print(f'{name}: base at {angle:+.2f} rad, green block ends {away:.2f} rad from the blue one')


if __name__ == '__main__':
    main()

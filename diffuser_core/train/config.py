"""What a training run is; config/*.yaml are read into `TrainConfig`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from diffuser_core.checkpoint import DiffusionConfig
from diffuser_core.diffusion import LOSSES
from diffuser_core.unet import UNetConfig

__all__ = ['DataConfig', 'LossConfig', 'OptimizerConfig', 'TrainConfig']


@dataclass(frozen=True)
class DataConfig:
    """Which data and which windows.

    path          folder written by `collect`
    channels      patterns of the channels to plan in, e.g. 'lbr_iiwa_joint_*', '*.x'
    goal          patterns of the channels that may be given as a goal on the last step
    goal_share    share of the windows that are shown their goal
    exchangeable  name prefixes of objects that may swap ('red', 'green'); empty for none
    mirror        patterns of the channels that change sign in a mirror image; empty for none
    jitter        pattern of channels -> largest standard deviation of the noise on a window's first row [the channel's unit]
    horizon       steps a window
    stride        control ticks a step
    whole_episodes  windows are cut from whole episodes, anywhere, as the paper does; else from the journeys that an episode
                  consists of, whose ends they hold
    continuing    for motions that do not rest at the end of an episode: windows start anywhere, each row equally likely, and end
                  before the end of episodes that were cut off; those that fell hold their last row. Needs whole_episodes
    prefix        in a quarter of the windows the actions of the first 1 to so many steps are shown, as those that a robot carries
                  out while its next plan is made; needs continuing. 0: never, and plans that arrive late are made blindly
    returns       discount of the channel 'return', the return from every step on, which is then learnt as well and shown on the
                  first step: whoever plans says which return the plan shall have. Needs rewards; None: there is no such channel
    tilt          windows are drawn from an episode in proportion to exp(tilt * its return, in deviations of those of all
                  episodes), as a guide by the return would draw plans; for data in which good episodes are rare. Needs continuing
                  and rewards
    normalizer    'limits', 'gaussian' or 'identity'
    least_scale   the normaliser's smallest scale [the channel's unit], so that no trembling channel fills the range
    """

    path: str
    channels: tuple[str, ...]
    goal: tuple[str, ...] = ()
    goal_share: float = 0.75
    exchangeable: tuple[str, ...] = ()
    mirror: tuple[str, ...] = ()
    jitter: dict[str, float] = field(default_factory=dict)
    horizon: int = 64
    stride: int = 1
    whole_episodes: bool = False
    continuing: bool = False
    prefix: int = 0
    returns: float | None = None
    tilt: float = 0.0
    normalizer: str = 'limits'
    least_scale: float = 1e-6

    def __post_init__(self) -> None:
        if self.horizon < 2 or self.stride < 1:
            raise ValueError(f'data.horizon must be at least 2 and data.stride at least 1, got {self.horizon}, {self.stride}')
        if self.continuing and (not self.whole_episodes or self.goal):
            raise ValueError('data.continuing needs data.whole_episodes and no data.goal')
        if not 0 <= self.prefix < self.horizon or self.prefix and not self.continuing:
            raise ValueError(f'data.prefix lies in 0 ... horizon - 1 and needs data.continuing, got {self.prefix}')
        if self.returns is not None and not (0.0 < self.returns < 1.0 and self.whole_episodes):
            raise ValueError(f'data.returns is a discount in (0, 1) and needs data.whole_episodes, got {self.returns}')
        if not 0.0 <= self.tilt < math.inf or self.tilt and not self.continuing:
            raise ValueError(f'data.tilt is a number from 0 up and needs data.continuing, got {self.tilt}')
        if not self.least_scale > 0.0:
            raise ValueError(f'data.least_scale must be positive, got {self.least_scale}')
        if any(not size >= 0.0 for size in self.jitter.values()):
            raise ValueError(f'data.jitter must not be negative, got {self.jitter}')
        if not 0.0 <= self.goal_share <= 1.0:
            raise ValueError(f'data.goal_share must lie in [0, 1], got {self.goal_share}')


@dataclass(frozen=True)
class LossConfig:
    """How errors of the prediction count.

    kind          'l2' squared, 'l1' absolute
    weights       pattern of channels -> factor of their errors
    discount      factor from one planning step to the next, in (0, 1]
    first_action  factor of the actions on the first step, in place of the others (the released locomotion code: 10)
    """

    kind: str = 'l2'
    weights: dict[str, float] = field(default_factory=dict)
    discount: float = 1.0
    first_action: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise ValueError(f'loss.kind must be one of {", ".join(LOSSES)}, got {self.kind!r}')
        if not 0.0 < self.discount <= 1.0:
            raise ValueError(f'loss.discount must lie in (0, 1], got {self.discount}')
        if any(not w >= 0.0 for w in (*self.weights.values(), self.first_action or 0.0)):
            raise ValueError(f'loss.weights and loss.first_action must not be negative, got {self.weights}, {self.first_action}')


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with a linear warm-up and a cosine decay to zero over the run (the paper keeps its rate constant: 'constant').

    accumulate batches whose gradients are averaged for one step
    ema        decay of the averaged weights, which are what is saved
    ema_every  steps between two updates of that average
    ema_start  step before which the average just copies the weights; None: averages from the first step, with a decay
               that grows to `ema`
    precision  'bf16' runs the network in bfloat16 autocast with float32 weights, 'float32' does not
    """

    steps: int = 60_000
    batch: int = 32
    learning_rate: float = 4e-4
    decay: str = 'cosine'
    warmup: int = 500
    ema: float = 0.995
    accumulate: int = 1
    ema_every: int = 1
    ema_start: int | None = None
    precision: str = 'bf16'

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.warmup < 0:
            raise ValueError(f'optimizer.steps and batch must be positive, got {self.steps} and {self.batch}')
        if not self.learning_rate > 0.0 or not 0.0 <= self.ema < 1.0:
            raise ValueError(f'optimizer.learning_rate must be positive and ema in [0, 1), got {self.learning_rate}, {self.ema}')
        if self.accumulate < 1 or self.ema_every < 1 or (self.ema_start or 0) < 0:
            raise ValueError(f'optimizer.accumulate and ema_every must be positive and ema_start not negative, got '
                             f'{self.accumulate}, {self.ema_every} and {self.ema_start}')
        if self.decay not in ('cosine', 'constant') or self.precision not in ('bf16', 'float32'):
            raise ValueError(f"optimizer.decay is 'cosine' or 'constant' and precision 'bf16' or 'float32', got "
                             f'{self.decay!r} and {self.precision!r}')


@dataclass(frozen=True)
class TrainConfig:
    """A training run: data, network, diffusion, optimiser and loss.

    name        of the run; results go to runs/train/<name> unless --out says otherwise
    start_from  folder of a checkpoint with the same network and channels to go on from; random weights if not given
    save_every  steps between checkpoints
    """

    name: str
    data: DataConfig
    model: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    start_from: str | None = None
    seed: int = 0
    save_every: int = 2000

    def __post_init__(self) -> None:
        if self.data.horizon % self.model.horizon_multiple:
            raise ValueError(f'data.horizon must be a multiple of {self.model.horizon_multiple} for model.multipliers '
                             f'{self.model.multipliers}, got {self.data.horizon}')
        if self.save_every < 1:
            raise ValueError(f'save_every must be at least 1, got {self.save_every}')

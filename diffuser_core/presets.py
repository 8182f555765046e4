"""What the paper and the code released with it use, by name; and what we use instead.

The two disagree with each other in many places, which is what people who try to reproduce the method stumble over most. Each
value is therefore a named field, and `Preset.train` and `Preset.sampling` turn a preset into the options of this library.
Values: the released code (`of='code'`) and the paper's text (`of='paper'`, arXiv 2205.09991).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from diffuser_core.checkpoint import DiffusionConfig
from diffuser_core.planner import Sampling
from diffuser_core.train.config import DataConfig, LossConfig, OptimizerConfig, TrainConfig
from diffuser_core.unet import UNetConfig
from diffuser_core.value_network import ValueConfig

__all__ = ['DOMAINS', 'GuidePreset', 'Preset', 'paper', 'preset_table']


@dataclass(frozen=True)
class GuidePreset:
    """The locomotion guide.

    scale                 alpha, the factor of J's gradient
    steps                 gradient steps a level
    stop_level            the gradient is zero below this level
    candidates            plans drawn at once; the first action of the best is executed, unclipped
    discount              gamma of the return that J is trained on, summed to the end of the episode
    termination_penalty   reward put in place of the last one of an episode that terminated
    training_steps        of the return predictor
    """

    scale: float = 0.1
    steps: int = 2
    stop_level: int = 2
    candidates: int = 64
    discount: float = 0.997
    termination_penalty: float = -100.0
    training_steps: int = 200_000
    network: ValueConfig = field(default_factory=lambda: ValueConfig(32, (1, 2, 4, 8), 'flat'))


@dataclass(frozen=True)
class Preset:
    """All settings of one task.

    conditions     steps of a training window shown without noise: 'first', 'first and last', or 'random ends' (either or both)
    execution      'first action', 'pd' (planned states are followed by a unit-gain PD law, one plan an episode) or 'states'
    padding        whether episodes are padded with zeros, which are then normalised, so that windows may begin near the end
    drop_last      whether the last start of every episode is left out, as the released code does by an off-by-one
    max_episode    longest episode [steps]; stride: control ticks a planning step
    """

    domain: str
    of: str
    horizon: int
    levels: int
    model: UNetConfig
    prediction: str
    loss: LossConfig
    normalizer: str
    clip: bool
    optimizer: OptimizerConfig
    conditions: str
    execution: str
    padding: bool
    max_episode: int
    stride: int = 1
    drop_last: bool = True
    replans: bool = True
    guide: GuidePreset | None = None

    def train(self, name: str, path: str, channels: tuple[str, ...], goal: tuple[str, ...] = ()) -> TrainConfig:
        """The training run with these settings on the data in `path`.

        Of `conditions`, training shows the first step always, and `goal` on the last one in all windows ('first and last') or in
        two of three ('random ends': windows that show only their end do not occur). `padding`, `drop_last` and `max_episode` say
        what the released code does to its data; windows of this library hold an episode's last row instead.
        """
        share = {'first': 0.0, 'first and last': 1.0, 'random ends': 2 / 3}[self.conditions]
        data = DataConfig(path, channels, goal if share else (), share, horizon=self.horizon, stride=self.stride,
                          normalizer=self.normalizer)
        diffusion = DiffusionConfig(self.levels, self.prediction, self.clip)
        return TrainConfig(name, data, self.model, diffusion, self.optimizer, self.loss)

    def sampling(self) -> Sampling:
        """DDPM over all levels, with the released guidance, no warm start."""
        options = Sampling(steps=self.levels, warm_steps=self.levels, warm_level=1.0, eta=1.0, guide_limit=None)
        if self.guide is None:
            return options
        return replace(options, rule='released' if self.of == 'code' else 'algorithm1', guide_steps=self.guide.steps,
                       stop_level=self.guide.stop_level)


_OPTIMIZER = OptimizerConfig(steps=1_000_000, batch=32, learning_rate=2e-4, decay='constant', warmup=0, ema=0.995, accumulate=2,
                             ema_every=10, ema_start=2000, precision='float32')


def _locomotion(domain: str, model: UNetConfig, horizon: int = 32, guide: GuidePreset | None = None) -> Preset:
    return Preset(domain, 'code', horizon, 20, model, 'x0', LossConfig('l2', first_action=10.0), 'gaussian', False, _OPTIMIZER,
                  'first', 'first action', True, 1000, guide=guide or GuidePreset())


def _maze(domain: str, horizon: int, levels: int) -> Preset:
    return Preset(domain, 'code', horizon, levels, UNetConfig(32, (1, 4, 8)), 'x0', LossConfig('l2'), 'limits', True,
                  replace(_OPTIMIZER, steps=2_000_000), 'first and last', 'pd', False, 40_000, replans=False)


_WIDE, _CHEETAH = UNetConfig(32, (1, 2, 4, 8)), UNetConfig(32, (1, 4, 8), attention=True)
_CODE = {preset.domain: preset for preset in (
    _locomotion('hopper', _WIDE),
    _locomotion('hopper-medium-expert', _WIDE, guide=GuidePreset(scale=1e-4, stop_level=4)),
    _locomotion('walker2d', _WIDE),
    _locomotion('halfcheetah', _CHEETAH, 4, GuidePreset(scale=1e-3, stop_level=4)),
    _maze('maze2d-umaze', 128, 64),
    _maze('maze2d-medium', 256, 256),
    _maze('maze2d-large', 384, 256),
    Preset('kuka', 'code', 128, 1000, UNetConfig(128, (1, 2, 4, 8), attention=True), 'epsilon', LossConfig('l1'), 'limits', True,
           replace(_OPTIMIZER, steps=700_000, learning_rate=2e-5), 'random ends', 'states', False, 300, stride=2, replans=False),
)}
DOMAINS = tuple(_CODE)
_TEXT_HORIZON = {'maze2d-umaze': 128, 'maze2d-medium': 265, 'maze2d-large': 384, 'kuka': 128}


def paper(domain: str, of: str = 'code') -> Preset:
    """The settings of the released code, or of the paper's text where that differs; ValueError naming what there is."""
    if domain not in _CODE:
        raise ValueError(f'there is no preset {domain!r}; there are {", ".join(DOMAINS)}')
    preset = _CODE[domain]
    if of == 'code':
        return preset
    if of != 'paper':
        raise ValueError(f"a preset is of 'code' or of 'paper', got {of!r}")
    guide = None if preset.guide is None else replace(preset.guide, scale=1e-3, steps=1, stop_level=0)
    return replace(preset, of='paper', horizon=_TEXT_HORIZON.get(domain, 100), levels=100, prediction='epsilon',
                   loss=LossConfig('l2'), optimizer=replace(_OPTIMIZER, steps=500_000, learning_rate=4e-5, accumulate=1),
                   model=replace(preset.model, attention=False), guide=guide)


def preset_table() -> str:
    """The released code's values, the paper's text and ours, a row each setting, as Markdown."""
    def of(pick) -> list[str]:  # type: ignore[no-untyped-def]
        return [str(pick(preset)) for preset in columns]

    columns = [paper('hopper'), paper('hopper', 'paper'), paper('maze2d-umaze'), paper('maze2d-umaze', 'paper'), paper('kuka')]
    ours = Sampling()
    rows = [
        ('horizon', of(lambda p: p.horizon), '64 (stacking); any when planning'),
        ('levels', of(lambda p: p.levels), f'64, visited in {ours.steps} steps, {ours.warm_steps} from the last plan'),
        ('width; multipliers', of(lambda p: f'{p.model.width}; {", ".join(map(str, p.model.multipliers))}'), '32; 1, 2, 4'),
        ('attention', of(lambda p: 'linear' if p.model.attention else 'none'), 'none; known ends told to every block'),
        ('prediction', of(lambda p: p.prediction), DiffusionConfig().prediction),
        ('loss', of(lambda p: p.loss.kind), LossConfig().kind),
        ('weight of the first action', of(lambda p: p.loss.first_action or 1), '1'),
        ('normaliser', of(lambda p: p.normalizer), 'limits'),
        ('clean estimates clipped', of(lambda p: p.clip), 'True'),
        ('learning rate', of(lambda p: f'{p.optimizer.learning_rate:g}'), '0.0004, cosine decay'),
        ('training steps', of(lambda p: f'{p.optimizer.steps:,}'), '34,000 (stacking)'),
        ('batch x accumulation', of(lambda p: f'{p.optimizer.batch} x {p.optimizer.accumulate}'), '32 x 1'),
        ('average: decay, every, from', of(lambda p: f'{p.optimizer.ema}, {p.optimizer.ema_every}, {p.optimizer.ema_start}'),
         '0.999, 1, 0 with growing decay'),
        ('shown in training', of(lambda p: p.conditions), 'first, and the goal on the last in three of four'),
        ('zero padding of episodes', of(lambda p: p.padding), 'no: the last state is held'),
        ('executed', of(lambda p: p.execution), 'the first part of every plan, a new plan a tick'),
        ('guidance rule', of(lambda p: p.sampling().rule if p.guide else 'none'), ours.rule),
        ('guide scale', of(lambda p: f'{p.guide.scale:g}' if p.guide else '-'), 'a factor of the guide'),
        ('guide steps a level; none below', of(lambda p: f'{p.guide.steps}; {p.guide.stop_level}' if p.guide else '-'), '1; 0'),
        ('candidates', of(lambda p: p.guide.candidates if p.guide else 1), '1; `count=` for more'),
    ]
    head = ['setting', *(f'{p.domain}, {"code" if p.of == "code" else "paper text"}' for p in columns), 'ours']
    lines = [head, ['---'] * len(head), *([name, *values, our] for name, values, our in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)

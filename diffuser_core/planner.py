"""The planner: a checkpoint made ready to answer 'what next?' from a state, conditions and, if there is one, the last plan."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from diffuser_core.backends import LoopGraphs, execute
from diffuser_core.budget import Budget, Pace
from diffuser_core.checkpoint import Checkpoint
from diffuser_core.conditions import Conditions
from diffuser_core.guide_library import ValueGuide
from diffuser_core.guides import Guide, deferred_checks, normal_gradient
from diffuser_core.sampler import Denoised, Denoiser, Guidance, SoftKnown, denoise, noised_start
from diffuser_core.sampling import DEFAULT_SAMPLING, Sampling
from diffuser_core.schedule import NoiseSchedule, strided_levels
from diffuser_core.trajectory import Channels, Plan

__all__ = ['DEFAULT_SAMPLING', 'Planner', 'Sampling']


def _check_guide(guide: object) -> None:
    if guide is not None and not isinstance(guide, Guide):
        raise ValueError(f'a guide must be a Guide (RewardGuide makes one of a function), got {type(guide).__name__}')


@dataclass(frozen=True)
class _Task:
    """What drawing plans does, apart from the numbers it is given: equal tasks, with equal guides, are the same operations."""

    count: int
    visited: tuple[int, ...]
    warm: bool
    soft: bool
    sampling: Sampling


class Planner:
    """Plans with one trained model.

    Every draw comes from a generator seeded with `seed`: the same seed and the same calls give the same plans on the same
    device, backend and thread count. Not thread-safe.

    backend  how the network is executed: see diffuser_core.backends
    clip     whether observations and conditions beyond the range of the training data are pulled to its edge (normaliser
             'limits' only; ValueError with another); otherwise they are used as they are, with one warning
    """

    OUTSIDE = 1.05
    """Normal values beyond this are outside the training data."""

    def __init__(self, checkpoint: Checkpoint, *, device: str = 'cpu', seed: int = 0, backend: str = 'traced',
                 clip: bool = False) -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self._backend = backend
        self._normalizer = checkpoint.normalizer.to(self.device)
        diffusion = checkpoint.diffusion
        network = checkpoint.network().to(self.device)
        executed = execute(network, backend, checkpoint.horizon, len(checkpoint.channels), self.device, levels=diffusion.levels)
        self._graphs = LoopGraphs() if backend == 'cudagraph' else None
        self._denoiser = Denoiser(executed, NoiseSchedule.cosine(diffusion.levels), diffusion.prediction, diffusion.clip,
                                  network.encode)
        if clip and self._normalizer.kind != 'limits':
            raise ValueError(f"clip needs a model with the normaliser 'limits', this one has {self._normalizer.kind!r}")
        self._clip = clip
        offset, scale = (numbers.double().numpy() for numbers in (checkpoint.normalizer.offset, checkpoint.normalizer.scale))
        self._range = offset - self.OUTSIDE * scale, offset + self.OUTSIDE * scale
        self._warned = False
        self._generator = torch.Generator(self.device)
        self.reseed(seed)

    @classmethod
    def from_checkpoint(cls, folder: Path | str, *, device: str = 'cpu', seed: int = 0, backend: str = 'traced',
                        clip: bool = False) -> Planner:
        """Load a checkpoint folder; CheckpointError if it is missing, damaged or does not fit itself."""
        return cls(Checkpoint.load(Path(folder)), device=device, seed=seed, backend=backend, clip=clip)

    @property
    def channels(self) -> Channels:
        """Columns of the plans."""
        return self.checkpoint.channels

    @property
    def step_dt(self) -> float:
        """Seconds between the rows of a plan."""
        return self.checkpoint.step_dt

    def reseed(self, seed: int) -> None:
        """Start the sequence of random draws again."""
        self._seed = seed
        self._generator.manual_seed(seed)

    def conditions(self, horizon: int | None = None) -> Conditions:
        """Empty conditions for this model's channels, to add known values to; `horizon` steps, default: training's."""
        return Conditions.none(self.checkpoint.horizon if horizon is None else horizon, self.channels)

    def value_guide(self) -> ValueGuide:
        """The checkpoint's return predictor as a guide; ValueError if it has none."""
        if self.checkpoint.value is None:
            raise ValueError('the checkpoint has no return predictor; "train --value" trains one')
        backend = 'eager' if self._graphs is not None else self._backend
        return self.checkpoint.value.guide(self._normalizer, self.checkpoint.horizon, backend=backend,
                                           levels=self.checkpoint.diffusion.levels)

    def warm_up(self, horizon: int | None = None, count: int = 1, sampling: Sampling = DEFAULT_SAMPLING, *,
                guide: Guide | None = None, select: Guide | None = None, wanted: bool = False) -> None:
        """Plan twice, cold and warm, and throw the plans away, so that no later call of this kind pays for compilation.

        `wanted`: later calls have wanted values, not only known ones; other arguments as those calls will have them. The sequence
        of random draws is left as it was.
        """
        state = self._generator.get_state()
        middle = self.checkpoint.normalizer.offset.double().numpy()
        conditions = self.conditions(horizon)
        if wanted:
            conditions = conditions.preferred(-1, self.channels, {self.channels.names[-1]: float(middle[-1])}, 0.5)
        judge = select if select is not None else guide
        for _ in range(2):
            plan = None
            for _ in ('cold', 'warm'):
                plans = self.candidates(middle[self.channels.actions:], conditions, count=count, guide=guide, sampling=sampling,
                                        warm_start=plan)
                plan = plans[0]
            if judge is not None:
                self._scores(plans, judge)
        self._generator.set_state(state)

    def plan(self, observation: np.ndarray, conditions: Conditions | None = None, *, guide: Guide | None = None,
             warm_start: Plan | None = None, sampling: Sampling = DEFAULT_SAMPLING, t0: float = 0.0,
             budget: float | Pace | None = None, count: int = 1, select: Guide | None = None) -> Plan:
        """One plan from `observation` (observations,) in physical units, the state at time `t0` [s].

        conditions  further known and wanted entries; they fix the horizon, any from 2 up, default training's
        guide       objective that bends the plan
        warm_start  earlier plan, read from `t0` on (its end is held) and noised
        budget      time [s] after which no further denoising step is begun, at least one is made; or who is asked instead
        count       candidates drawn at once; the best by `select`, or else by `guide`, is returned

        ValueError, one sentence, for wrong shapes and non-finite numbers; GuideError for a guide that returns nonsense.
        """
        _check_guide(select)
        judge = select if select is not None else guide
        if count > 1 and judge is None:
            raise ValueError(f'choosing among {count} candidates needs a guide to select by')
        plans = self.candidates(observation, conditions, count=count, guide=guide, warm_start=warm_start, sampling=sampling,
                                t0=t0, budget=budget)
        if judge is None:
            return plans[0]
        values = self._scores(plans, judge)
        best = int(values.argmax())
        chosen = plans[best]
        return replace(chosen, provenance={**chosen.provenance, 'value': float(values[best])})

    def candidates(self, observation: np.ndarray, conditions: Conditions | None = None, *, count: int,
                   guide: Guide | None = None, warm_start: Plan | None = None, sampling: Sampling = DEFAULT_SAMPLING,
                   t0: float = 0.0, budget: float | Pace | None = None,
                   watch: Callable[[int, np.ndarray], None] | None = None) -> list[Plan]:
        """`count` independent plans in one batch; arguments as for `plan`.

        watch  called before every denoising step with its level i and the trajectories there, and at the end with -1 and the
               clean ones, (count, horizon, channels) in physical units: for pictures. Not with the backend 'cudagraph'.
        """
        time_left = Budget(budget) if isinstance(budget, (int, float)) else budget
        if time_left is not None and self._graphs is not None:
            raise ValueError("the backend 'cudagraph' always runs its loop to the end and takes no budget; ask for fewer steps, "
                             "or use the backend 'traced'")
        if watch is not None and self._graphs is not None:
            raise ValueError("the backend 'cudagraph' runs its loop as a whole and cannot be watched; use the backend 'traced'")
        if count < 1:
            raise ValueError(f'at least one candidate is needed, got {count}')
        conditions = self.conditions() if conditions is None else conditions
        horizon = conditions.horizon
        mask, known, weights = self._known(observation, conditions)
        _check_guide(guide)
        if not math.isfinite(t0):
            raise ValueError(f'the time of a plan must be a finite number, got {t0} s')
        self._check_range(known, mask | (weights > 0.0))
        levels = self._denoiser.schedule.levels
        rows = [mask, weights, known]
        if warm_start is None:
            visited = strided_levels(levels, sampling.steps)
        else:
            self._check_warm_start(warm_start)
            visited = strided_levels(max(1, round(sampling.warm_level * levels)), sampling.warm_steps)
            rows.append(warm_start.shifted(t0, len(mask)))
        task = _Task(count, tuple(visited), warm_start is not None, bool(weights.any()), sampling)
        inputs = torch.from_numpy(np.array(rows, dtype=np.float32))
        if self._graphs is None:
            physical, drawn = self._draw(task, guide, inputs.to(self.device), time_left, self._seen_by(watch, horizon))
        else:
            physical, drawn = self._replayed(self._graphs, task, guide, inputs)
        values = physical[:, :horizon].cpu().numpy().astype(np.float64)
        if not self._clip:  # exactly what was given, not what became of it in single precision, in normal units and back
            np.copyto(values, known[:horizon], where=mask[:horizon])
        if not np.isfinite(values).all():
            raise FloatingPointError('the network returned a plan with non-finite values')
        return [Plan(row, self.channels, t0, self.step_dt, provenance)
                for row, provenance in zip(values, self._provenance(drawn, visited, task.warm, count))]

    def predict(self, observation: np.ndarray, actions: np.ndarray, *, steps: int = 5) -> np.ndarray:
        """The model as a model of the dynamics: trajectories (count, horizon, channels) that start at `observation`
        (observations,) and hold the `actions` (count, horizon, actions), their states drawn in `steps` DDIM steps; physical
        units. ValueError for other shapes.
        """
        count, horizon, size = actions.shape if actions.ndim == 3 else (0, 0, 0)
        if count < 1 or size != self.channels.actions:
            raise ValueError(f'actions to predict from need shape (count, horizon, {self.channels.actions}), got {actions.shape}')
        present, values, _ = self._known(observation, self.conditions(horizon))
        if len(present) != horizon:
            raise ValueError('predictions need a horizon that is a multiple of '
                             f'{self.checkpoint.model.horizon_multiple}, got {horizon}')
        known = np.repeat(values[None], count, axis=0)
        known[..., :size] = actions
        mask = present.copy()
        mask[:, :size] = True
        normal, seen = (self._normalizer.normalize(torch.from_numpy(rows).float().to(self.device)) for rows in (known, values))
        told = torch.from_numpy(present).to(self.device)
        context = None if self._denoiser.encode is None else self._denoiser.encode(seen[None], told[None])
        noise = torch.randn(normal.shape, generator=self._generator, device=self.device)
        visited = strided_levels(self._denoiser.schedule.levels, steps)
        with torch.no_grad():
            drawn = denoise(replace(self._denoiser, encode=lambda *_: context), noise, visited, normal,
                            torch.from_numpy(mask).to(self.device), self._generator)
            return self._normalizer.denormalize(drawn.clean).double().cpu().numpy()

    def _seen_by(self, watch: Callable[[int, np.ndarray], None] | None, horizon: int) \
            -> Callable[[int, torch.Tensor], None] | None:
        if watch is None:
            return None
        return lambda i, x: watch(i, self._normalizer.denormalize(x)[:, :horizon].double().cpu().numpy())

    def _draw(self, task: _Task, guide: Guide | None, inputs: torch.Tensor, budget: Pace | None = None,
              watch: Callable[[int, torch.Tensor], None] | None = None) -> tuple[torch.Tensor, Denoised]:
        """Trajectories (count, horizon, channels) in physical units, and how they came about.

        `inputs` (3 or 4, horizon, channels): which values are known, weights of the wanted ones, known and wanted values, the
        earlier plan. Nothing in here waits for the device.
        """
        mask, weights = inputs[0].bool(), inputs[1]
        sampling = task.sampling
        rows = self._normalizer.normalize(inputs[2:])
        normal = rows[0].clamp(-1.0, 1.0) if self._clip else rows[0]
        start = torch.randn((task.count, *normal.shape), generator=self._generator, device=inputs.device)
        if task.warm:
            start = noised_start(rows[1], task.visited[0], self._denoiser.schedule, start)
        guidance = None if guide is None else Guidance(normal_gradient(guide, self._normalizer), sampling.rule,
                                                       sampling.guide_steps, sampling.stop_level, sampling.guide_limit)
        soft = SoftKnown(normal, weights, sampling.through) if task.soft else None
        with torch.no_grad():
            drawn = denoise(self._denoiser, start, task.visited, normal, mask, self._generator, sampling.eta,
                            solver=sampling.solver, guidance=guidance, soft=soft, resample=sampling.resample, budget=budget,
                            watch=watch)
            physical = self._normalizer.denormalize(drawn.clean)
        return physical, drawn

    def _replayed(self, graphs: LoopGraphs, task: _Task, guide: Guide | None, inputs: torch.Tensor) \
            -> tuple[torch.Tensor, Denoised]:
        """As `_draw`, as one graph. If a number was not finite, drawn again step by step, where the checks name the guide."""
        def whole(buffer: torch.Tensor) -> tuple[torch.Tensor, Denoised, torch.Tensor]:
            with deferred_checks() as finite:
                physical, drawn = self._draw(task, guide, buffer)
            return physical, drawn, torch.stack([*finite, torch.isfinite(physical).all()]).all()

        before = self._generator.get_state()
        key = task, None if guide is None else guide.key()
        physical, drawn, finite = graphs.run(key, whole, inputs, self._generator)
        if bool(finite):
            return physical, drawn
        self._generator.set_state(before)
        return self._draw(task, guide, inputs.to(self.device))

    def _scores(self, plans: list[Plan], judge: Guide) -> torch.Tensor:
        return judge.score(torch.from_numpy(np.stack([plan.values for plan in plans])).float().to(self.device))

    def _check_warm_start(self, plan: Plan) -> None:
        if plan.channels != self.channels:
            raise ValueError(f'a warm start needs a plan with the channels of this model, {", ".join(self.channels.names)}; '
                             f'got one with {", ".join(plan.channels.names)}')
        if not math.isclose(plan.step_dt, self.step_dt, rel_tol=1e-6):
            raise ValueError(f'a warm start needs a plan with steps of {self.step_dt} s, as this model makes them, got '
                             f'{plan.step_dt} s')
        if not np.isfinite(plan.values).all():
            t, c = np.argwhere(~np.isfinite(plan.values))[0]
            raise ValueError(f'the warm start is not a finite number on step {t}, channel {plan.channels.names[c]}')

    def _provenance(self, drawn: Denoised, asked: list[int], warm: bool, count: int) -> list[dict[str, object]]:
        common = {'levels': drawn.visited, 'seed': self._seed, 'warm': warm, 'cut_short': len(drawn.visited) < len(asked)}
        if drawn.values is None:
            return [common] * count
        return [{**common, 'guided_value': value} for value in drawn.values.tolist()]

    def _check_range(self, values: np.ndarray, used: np.ndarray) -> None:
        """Warn, once, about physical `values` (horizon, channels) outside the training data's range where `used`."""
        normalizer = self.checkpoint.normalizer
        if self._warned or self._clip or normalizer.kind != 'limits':
            return
        low, high = self._range
        outside = used & ((values < low) | (values > high))
        if outside.any():
            self._warned = True
            t, c = np.argwhere(outside)[0]
            normal = normalizer.normalize(torch.from_numpy(values))[t, c]
            warnings.warn(f'the value of {self.channels.names[c]} on step {t} lies outside the training data '
                          f'({normal:+.2f} of a range of +-1); plans from there are guesses', stacklevel=4)

    def _known(self, observation: np.ndarray, conditions: Conditions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mask, values and weights of the conditions with the observation on step 0, padded to a horizon that the network can
        halve; values are 0 where nothing is known or wanted, weights where something is known."""
        channels = self.channels
        observation = np.asarray(observation, dtype=np.float64)
        if observation.shape != (len(channels.observations),):
            raise ValueError(f'the observation needs shape ({len(channels.observations)},), got {observation.shape}')
        if not np.isfinite(observation).all():
            wrong = channels.observations[int(np.flatnonzero(~np.isfinite(observation))[0])]
            raise ValueError(f'the observation of {wrong} is not a finite number')
        if conditions.mask.shape[1] != len(channels):
            raise ValueError(f'conditions need {len(channels)} channels, got {conditions.mask.shape[1]}')
        if conditions.horizon < 2:
            raise ValueError(f'a plan needs a horizon of at least 2 steps, got {conditions.horizon}')
        conditions = conditions.padded(-conditions.horizon % self.checkpoint.model.horizon_multiple)
        mask = conditions.mask.copy()
        mask[0, channels.actions:] = True
        values = np.where(mask | (conditions.weights > 0.0), conditions.values, 0.0)
        values[0, channels.actions:] = observation
        return mask, values, np.where(mask, 0.0, conditions.weights)

"""Table 2 of the paper on data of our own: collects, trains, chooses settings on validation seeds and scores on others.

    python benchmarks/locomotion_table.py --robots hopper walker2d halfcheetah --qualities medium-expert medium medium-replay

Every stage is a command of `diffuser_core`, printed before it runs. What is complete in --out is not done again, so an
interrupted table goes on. `table.json` has a row a task and policy, which is printed as it is known; scores are on D4RL's scale,
intervals over the episodes of all training seeds. Settings are chosen for every planner that is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffuser_core.checkpoint import Checkpoint
from diffuser_core.data.episodes import load_episodes
from diffuser_core.envs.locomotion import ROBOTS, score
from diffuser_core.evaluate.locomotion import PAPER
from diffuser_core.evaluate.statistics import mean_interval
from diffuser_core.experts.collect_locomotion import QUALITIES
from diffuser_core.shipped import config_folder

VALIDATION_SEED = 5000
TEST_SEED = 100
TIME_LIMIT = 1000
POLICIES = ('behaviour-medium', 'behaviour-best', 'ours')
MORE_POLICIES = ('imitation', 'guided')
TILTS = {'walker2d-medium': 3.0, 'halfcheetah-medium': 5.0, 'halfcheetah-medium-replay': 5.0}
"""`data.tilt` where it is not 1, of the tasks whose episodes worth following are rare: medium and
medium-replay. Their planners are told returns of the discount 0.99, which tells running from standing still for long.
How the tilts were found is in docs/results.md."""
GUIDED = ('--candidates', '8', '--steps', '5')
"""Plans that are not told which return to reach: the best of 8 by the return predictor, bent by its gradient."""


@dataclass(frozen=True)
class Stages:
    """The commands behind the table's rows."""

    options: argparse.Namespace

    def run(self, *words: str) -> None:
        """Run a verb; CalledProcessError if it fails."""
        command = [sys.executable, '-m', 'diffuser_core', *words]
        print('$ python', shlex.join(command[1:]), flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def folder(self, robot: str, quality: str) -> Path:
        """Where a data set is."""
        out: Path = self.options.out / 'data' / f'{robot}_{quality}'
        return out

    def data(self, robot: str, quality: str) -> dict[str, Any]:
        """The row of a data set, collected if need be."""
        out = self.folder(robot, quality)
        steps = () if self.options.data_steps is None else ('--steps', str(self.options.data_steps))
        self.run('collect', 'locomotion', '--robot', robot, '--quality', quality, '--out', str(out),
                 *(() if quality == 'medium-replay' else steps), *self.workers)
        data = load_episodes(out, whole=True)
        assert data.terminated is not None
        ended = data.terminated | (data.lengths >= TIME_LIMIT)  # the others were cut off by the collection
        mean = float(data.returns[ended].mean())
        return {'task': f'{robot}-{quality}', 'policy': 'data', 'score': score(ROBOTS[robot], mean), 'return': mean,
                'episodes': int(ended.sum()), 'steps': int(data.lengths.sum())}

    def rare(self, robot: str, quality: str) -> tuple[str, ...]:
        """Changes of the configuration where good episodes are rare."""
        tilt = TILTS.get(f'{robot}-{quality}', 1.0)
        return () if quality == 'medium-expert' else (f'data.tilt={tilt:g}', 'data.returns=0.99')

    def planner(self, robot: str, quality: str, seed: int, guided: bool) -> Path:
        """A checkpoint of a planner that is told the return to reach, or of one with a return predictor; trained if need be."""
        folder = self.options.out / (f'{robot}_{quality}_{seed}' + ('_guided' if guided else ''))
        judged = folder / ('checkpoint' if guided else 'planner/checkpoint')
        data, threads = self.folder(robot, quality), ('--threads', str(self.options.threads))
        if not (guided and judged.exists()):
            self.run('train', os.path.relpath(config_folder() / f'{robot}.yaml'), f'data.path={data}', f'seed={seed}',
                     f'name={robot}_{quality}', *self.rare(robot, quality),
                     *(('data.returns=null',) if guided else ()), *self.options.planner, '--out', str(folder / 'planner'),
                     *threads)
        if guided and not judged.exists():
            self.run('train', '--value', os.path.relpath(config_folder() / f'{robot}_value.yaml'), f'data={data}', f'seed={seed}',
                     f'checkpoint={folder / "planner/checkpoint"}', f'out={judged}', *self.options.value, *threads)
        return judged

    def score(self, robot: str, quality: str, out: Path, episodes: int, first_seed: int, *words: str) -> dict[str, Any]:
        """The records of an evaluation, and its summary."""
        self.run('evaluate', 'locomotion', '--robot', robot, '--quality', quality, '--episodes', str(episodes), '--seed-start',
                 str(first_seed), '--out', str(out), *words, *self.workers)
        found: dict[str, Any] = json.loads((out / 'summary.json').read_text(encoding='utf-8'))
        return found

    @property
    def workers(self) -> tuple[str, ...]:
        """The option for how many processes."""
        return () if self.options.workers is None else ('--workers', str(self.options.workers))

    def settings(self, robot: str, quality: str, checkpoint: Path, policy: str) -> tuple[str, ...]:
        """The settings of a policy that do best on the validation seeds."""
        if policy == 'imitation':
            return GUIDED[:1] + ('1',) + GUIDED[2:]
        if policy == 'ours':
            self.run('evaluate', 'locomotion-aim', '--robot', robot, '--quality', quality, '--out',
                     str(checkpoint.parent / 'validation'), '--episodes', str(self.options.validation_episodes), '--seed-start',
                     str(VALIDATION_SEED), *self.plans(checkpoint), *self.workers, '--aims', *map(str, self.options.aims))
            chosen = Checkpoint.load(checkpoint)
            print(f'  {robot}-{quality}, on validation seeds by aim: {chosen.provenance["aim"]["scores"]}', flush=True)
            return '--aim', f'{chosen.aim:g}'
        choices = [(*GUIDED, '--guide-scale', f'{scale:g}') for scale in self.options.guide_scales]
        scores = []
        for choice in choices:
            out = checkpoint.parent / f'validation_{policy}_{choice[-1]}'
            summary = self.score(robot, quality, out, self.options.validation_episodes, VALIDATION_SEED, *self.plans(checkpoint),
                                 *choice)
            scores.append(summary['rows'][0]['score'])
            print(f'  {robot}-{quality}, {" ".join(choice)}: {scores[-1]:.1f} on validation seeds', flush=True)
        return choices[int(np.argmax(scores))]

    def plans(self, checkpoint: Path) -> tuple[str, ...]:
        """How the planner is run."""
        return '--checkpoint', str(checkpoint), '--backend', self.options.backend

    def row(self, robot: str, quality: str, policy: str, seeds: Sequence[int]) -> dict[str, Any]:
        """A row of the table: one of `POLICIES` or `MORE_POLICIES`."""
        records: list[dict[str, Any]] = []
        by_seed: list[float] = []
        chosen: list[str] = []
        for seed in seeds[:1] if policy.startswith('behaviour') else seeds:
            if policy.startswith('behaviour'):
                out, words = self.options.out / f'{robot}_{policy}', ('--policy', policy)
            else:
                checkpoint = self.planner(robot, quality, seed, policy != 'ours')
                settings = self.settings(robot, quality, checkpoint, policy)
                out = checkpoint.parent / f'{policy}_{settings[-1]}'
                chosen.append(' '.join(settings))
                words = (*self.plans(checkpoint), *settings)
            self.score(robot, quality, out, self.options.episodes, TEST_SEED, *words)
            lines = (out / 'episodes.jsonl').read_text(encoding='utf-8').splitlines()
            wanted = range(TEST_SEED, TEST_SEED + self.options.episodes)
            records += [record for record in map(json.loads, lines)
                        if record['task'] == f'{robot}-{quality}' and record['seed'] in wanted]
            by_seed.append(float(np.mean([record['score'] for record in records[-self.options.episodes:]])))
        scores = np.array([record['score'] for record in records])
        planning = [record['planning_ms']['p50'] for record in records if record['planning_ms']['p50'] is not None]
        return {'task': f'{robot}-{quality}', 'policy': policy, 'settings': chosen,
                'training_seeds': by_seed, 'score': float(scores.mean()),
                'ci95': list(mean_interval(scores)), 'return': float(np.mean([record['return'] for record in records])),
                'episodes': len(records), 'failed': sum(record['failure'] is not None for record in records),
                'planning_ms': float(np.median(planning)) if planning else None, 'paper': PAPER[f'{robot}-{quality}']}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--robots', nargs='+', choices=list(ROBOTS), default=list(ROBOTS))
    parser.add_argument('--qualities', nargs='+', choices=QUALITIES[:3], default=list(QUALITIES[:3]))
    parser.add_argument('--planner', nargs='*', default=[], metavar='key=value', help="changes of the planners' configuration")
    parser.add_argument('--value', nargs='*', default=[], metavar='key=value', help="of the return predictors'")
    parser.add_argument('--training-seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--data-steps', type=int, default=None, help="of each data set but medium-replay; default: D4RL's")
    parser.add_argument('--episodes', type=int, default=15, help='of each training seed')
    parser.add_argument('--validation-episodes', type=int, default=15)
    parser.add_argument('--aims', type=float, nargs='+', default=[1.0, 1.5, 2.0, 3.0], help='to choose from')
    parser.add_argument('--guide-scales', type=float, nargs='+', default=[0.0, 0.1], help='to choose from')
    parser.add_argument('--policies', nargs='+', choices=(*POLICIES, *MORE_POLICIES), default=POLICIES)
    parser.add_argument('--backend', default='openvino')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--workers', type=int, default=None)
    parser.add_argument('--out', type=Path, default=Path('runs/table2'))
    options = parser.parse_args()
    stages, rows = Stages(options), []
    try:
        for quality in options.qualities:
            for robot in options.robots:
                rows.append(stages.data(robot, quality))
                rows += [stages.row(robot, quality, policy, options.training_seeds) for policy in options.policies]
                for row in rows[-len(options.policies) - 1:]:
                    print(json.dumps(row), flush=True)
                (options.out / 'table.json').write_text(json.dumps(rows, indent=2) + '\n', encoding='utf-8')
    except subprocess.CalledProcessError as error:
        print(f'locomotion_table: {shlex.join(error.cmd[1:])} failed', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())

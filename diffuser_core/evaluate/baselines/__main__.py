"""Score a baseline on block stacking: the scripted demonstrator, or a policy that benchmarks/baselines/train.py has trained."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from diffuser_core.envs.stacking_tasks import TASKS
from diffuser_core.evaluate.baselines.suite import DEMONSTRATOR, evaluate, format_rows


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 after a mistake of the user's, said in one line on stderr; 130 after an interrupt."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog='python -m diffuser_core.evaluate.baselines', description=__doc__)
    parser.add_argument('policy', help=f"'{DEMONSTRATOR}', or a file such as runs/baselines/bc/policy.pt")
    parser.add_argument('--task', choices=[*TASKS, 'all'], default='all')
    parser.add_argument('--episodes', type=int, default=100)
    parser.add_argument('--seed-start', type=int, default=0)
    parser.add_argument('--workers', type=int, default=None, help='processes; default: one a core')
    parser.add_argument('--displace', type=float, default=0.0, help='displace a block in every episode by so much [m]')
    parser.add_argument('--out', type=Path, default=None, help='default: runs/evaluate/baselines/<policy>')
    options = parser.parse_args(arguments)
    name = options.policy if options.policy == DEMONSTRATOR else Path(options.policy).resolve().parent.name
    try:
        summary = evaluate(options.policy, tasks=TASKS if options.task == 'all' else (options.task,), episodes=options.episodes,
                           seed_start=options.seed_start, workers=options.workers, displace=options.displace,
                           out=options.out or Path('runs/evaluate/baselines') / name,
                           command=shlex.join(['python', '-m', 'diffuser_core.evaluate.baselines', *arguments]))
    except KeyboardInterrupt:
        print('interrupted; the same command continues where it stopped', file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f'evaluate: {error}', file=sys.stderr)
        return 2
    print(format_rows(summary['rows']))
    return 0


if __name__ == '__main__':
    sys.exit(main())

"""The command line: collect | train | evaluate | inspect.

The same arguments work as `ros2 run diffuser_core <verb>`, `diffuser-ros run <verb>` and `python -m diffuser_core <verb>`.
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

from diffuser_core.envs.locomotion import ROBOTS
from diffuser_core.envs.maze_layout import LAYOUTS
from diffuser_core.envs.stacking_tasks import TASKS

__all__ = ['main']

VERBS = ('collect', 'train', 'evaluate', 'inspect')


def main(argv: Sequence[str] | None = None, verb: str | None = None) -> int:
    """Run a verb; returns the exit code. A mistake of the user's is one line on stderr and code 2, an interrupt is 130."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if '--ros-args' in arguments:
        arguments = arguments[:arguments.index('--ros-args')]
    if verb is not None:
        arguments = [verb, *arguments]
    options = _parser().parse_args(arguments)
    options.command = shlex.join(['python', '-m', 'diffuser_core', *arguments])
    try:
        options.run(options)
    except KeyboardInterrupt:
        print('interrupted; the same command continues where it stopped', file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f'{options.verb}: {error}', file=sys.stderr)
        return 2
    return 0


def _common(episodes: int = 100, seed_start: int = 0) -> argparse.ArgumentParser:
    """Options of every suite, in a parser of its own for each: parsers share the options of their parents, defaults included."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--checkpoint', type=Path, default=None, help='default: the shipped one')
    common.add_argument('--episodes', type=int, default=episodes, help='of each task')
    common.add_argument('--seed-start', type=int, default=seed_start, help='seeds below 10000 are for evaluation')
    common.add_argument('--workers', type=int, default=None, help='processes; default: one a core')
    common.add_argument('--steps', type=int, default=None, help='denoising steps of a plan from pure noise')
    common.add_argument('--warm-steps', type=int, default=None, help='denoising steps of a warm-started plan')
    common.add_argument('--warm-level', type=float, default=None, help='share of the levels a warm start is noised up to')
    common.add_argument('--out', type=Path, default=None, help='default: runs/evaluate/<suite>, of a baseline <suite>_<policy>')
    return common


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='diffuser_core', description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest='verb', required=True, metavar=' | '.join(VERBS))

    collect = verbs.add_parser('collect', help='make demonstrations')
    collect.add_argument('task', choices=['kuka_stack', *(f'maze2d_{size}' for size in LAYOUTS), 'locomotion'])
    collect.add_argument('--robot', choices=list(ROBOTS), default=None, help='of locomotion; default: hopper')
    collect.add_argument('--quality', choices=['medium', 'medium-replay', 'medium-expert', 'expert'], default=None,
                         help='of locomotion; default: medium-expert')
    collect.add_argument('--demonstrations', type=int, default=None, help='of kuka_stack; default: 10000')
    collect.add_argument('--steps', type=int, default=None, help='of a maze or of locomotion; default: as many as D4RL has')
    collect.add_argument('--d4rl-controller', action='store_true',
                         help="in a maze: drive like D4RL's waypoint controller alone; default: corners are cut more or less")
    collect.add_argument('--seed-start', type=int, default=100_000, help='seeds below 10000 are for evaluation')
    collect.add_argument('--workers', type=int, default=None, help='processes; default: one a core')
    collect.add_argument('--out', type=Path, default=None, help='default: runs/collect/<task>, of locomotion <robot>_<quality>')
    collect.set_defaults(run=_collect)

    train = verbs.add_parser('train', help='train a planner; continues an interrupted run')
    train.add_argument('config', type=Path, help='for example config/kuka_stack.yaml')
    train.add_argument('overrides', nargs='*', metavar='key=value', help='for example optimizer.steps=1000')
    train.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    train.add_argument('--threads', type=int, default=None, help='CPU threads; default: all cores')
    train.add_argument('--out', type=Path, default=None, help='default: runs/train/<name>')
    train.add_argument('--classifier', action='store_true', help='the configuration is of a guiding classifier, not of a planner')
    train.add_argument('--value', action='store_true', help='the configuration is of a return predictor, not of a planner')
    train.set_defaults(run=_train)

    evaluate = verbs.add_parser('evaluate', help='score a checkpoint or a baseline; continues an interrupted run')
    suites = evaluate.add_subparsers(dest='suite', required=True, metavar='stacking | maze2d | locomotion')
    stacking = suites.add_parser('stacking', parents=[_common()], help='block stacking, Table 3 of the paper')
    stacking.add_argument('--policy', default=None, help="a baseline in the planner's place: 'demonstrator', or a file such as "
                          'runs/baselines/bc/policy.pt')
    stacking.add_argument('--task', choices=['all', *TASKS], default='all')
    stacking.add_argument('--commit', type=int, default=None, help='plan steps for which the motion of the last plan is kept')
    stacking.add_argument('--classifier', type=Path, default=None,
                          help='guide plans by this classifier in place of the goal at their end')
    stacking.add_argument('--keep-goal', action='store_true', help='with --classifier: give the goal as well')
    stacking.add_argument('--displace', type=float, default=0.0, metavar='METRES',
                          help='move a block by this much in the middle of every episode')
    stacking.add_argument('--delay', type=float, default=0.0, metavar='SECONDS', help='plans arrive so much later')
    stacking.add_argument('--jitter', type=float, default=0.0, metavar='SECONDS', help='and up to so much more')
    stacking.add_argument('--loss', type=float, default=0.0, metavar='SHARE', help='and this share of them never')
    stacking.add_argument('--blind', action='store_true', help='with --delay: make plans as if they arrived at once')
    stacking.add_argument('--videos', action='store_true', help='film the best, median and worst episode of each task')
    stacking.add_argument('--through-ros', action='store_true', help='through bridge and planner node, in lock-step')
    stacking.add_argument('--realtime', action='store_true', help='with --through-ros: by the clock')
    stacking.set_defaults(run=_evaluate_stacking)

    mazes = suites.add_parser('maze2d', parents=[_common()], help='Maze2D and Multi2D, Table 1 of the paper')
    mazes.add_argument('--size', choices=['all', *LAYOUTS], default='all')
    mazes.add_argument('--multi-task', choices=['no', 'yes', 'both'], default='both',
                       help="yes: Multi2D, a goal drawn in every episode; no: Maze2D, the maze's own")
    mazes.add_argument('--policy', default=None, help="a baseline in the planner's place: 'waypoint' (D4RL's controller), "
                       "'waypoint-data' (our demonstrator), 'random', or a file such as runs/baselines/maze2d_umaze_bc/policy.pt")
    mazes.add_argument('--execution', choices=['states', 'actions', 'paper'], default=None,
                       help='states (default): plans are tracked; actions: their forces are applied as they are; paper: one '
                       'plan is followed as in the paper')
    mazes.add_argument('--replan-every', type=int, default=None, metavar='TICKS',
                       help='control ticks of 10 ms between two plans; default: 5')
    mazes.add_argument('--candidates', type=int, default=None,
                       help='plans drawn at the start, of which the fastest is taken; default: 8, with --execution paper 1')
    mazes.add_argument('--backend', default=None, help='how the network is executed: traced (default), openvino, ...')
    mazes.add_argument('--pictures', action='store_true', help='draw the best, median and worst episode of each task')
    mazes.set_defaults(run=_evaluate_mazes)

    running = suites.add_parser('locomotion', parents=[_common(episodes=15, seed_start=100)],
                                help='hopper, walker and half cheetah, Table 2 of the paper')
    running.add_argument('--robot', choices=list(ROBOTS), default='hopper')
    running.add_argument('--quality', choices=['medium', 'medium-replay', 'medium-expert'], default='medium-expert',
                         help='of the data that the planner was trained on')
    running.add_argument('--policy', default=None, help="a baseline in the planner's place: 'random', 'behaviour-medium', "
                         "'behaviour-best', 'mppi' (the checkpoint as a model of the dynamics alone), or a file such as "
                         'runs/baselines/hopper_medium-expert_bc/policy.pt')
    running.add_argument('--paper', action='store_true', help="plan as the released code does: 64 candidates, all denoising "
                         'steps, every plan from noise; minutes an episode')
    running.add_argument('--aim', type=float, default=None, help='the return that is aimed at, in deviations above the mean of '
                         'those in the data; for planners that are told it; default: what the checkpoint says, else 1')
    running.add_argument('--guide-scale', type=float, default=None, help="factor of the return's gradient; 0: no guide")
    running.add_argument('--candidates', type=int, default=None, help='plans drawn at once; the one of the best return is taken')
    running.add_argument('--warm', action='store_true', help='make plans from the last one; default: from noise')
    running.add_argument('--rule', default=None, help='how the guide bends plans: score (default), algorithm1 or released')
    running.add_argument('--replan-every', type=int, default=1, metavar='TICKS', help='control ticks between two plans')
    running.add_argument('--delay', type=float, default=0.0, metavar='SECONDS', help='plans arrive so much later')
    running.add_argument('--backend', default='traced', help='how networks are executed: traced (default), openvino, ...')
    running.set_defaults(run=_evaluate_locomotion)

    aiming = suites.add_parser('locomotion-aim', parents=[_common(episodes=10, seed_start=5000)],
                               help='which return a planner does best to aim at; writes it into the checkpoint')
    aiming.add_argument('--robot', choices=list(ROBOTS), default='hopper')
    aiming.add_argument('--quality', choices=['medium', 'medium-replay', 'medium-expert'], default='medium-expert',
                        help='of the data that the planner was trained on')
    aiming.add_argument('--aims', type=float, nargs='+', default=[0.5, 1.0, 1.5, 2.0], help='to choose from, in deviations above '
                        'the mean return of the data')
    aiming.add_argument('--backend', default='traced', help='how networks are executed: traced (default), openvino, ...')
    aiming.set_defaults(run=_choose_aim)

    inspect = verbs.add_parser('inspect', help='say what a checkpoint is')
    inspect.add_argument('checkpoint', type=Path)
    inspect.set_defaults(run=_inspect)
    return parser


def _collect(options: argparse.Namespace) -> None:
    robot, quality = options.robot or 'hopper', options.quality or 'medium-expert'
    locomotion = options.task == 'locomotion'
    if not locomotion and (options.robot is not None or options.quality is not None):
        raise ValueError(f'{options.task} takes neither --robot nor --quality; they are for locomotion')
    out = options.out or Path('runs/collect') / (f'{robot}_{quality}' if locomotion else options.task)
    if locomotion:
        from diffuser_core.experts.collect_locomotion import collect_locomotion
        if options.demonstrations is not None or options.d4rl_controller:
            raise ValueError('locomotion takes neither --demonstrations nor --d4rl-controller; --steps says how many')
        summary = collect_locomotion(out, robot, quality, options.seed_start, options.workers, steps=options.steps)
    elif options.task == 'kuka_stack':
        from diffuser_core.experts.collect import collect
        if options.steps is not None or options.d4rl_controller:
            raise ValueError('kuka_stack takes neither --steps nor --d4rl-controller; --demonstrations says how many')
        summary = collect(out, options.demonstrations or 10_000, options.seed_start, options.workers)
    else:
        from diffuser_core.experts.collect_mazes import collect_maze
        if options.demonstrations is not None:
            raise ValueError(f'{options.task} takes no --demonstrations; --steps says how many')
        summary = collect_maze(out, options.task.removeprefix('maze2d_'), options.seed_start, options.workers,
                               steps=options.steps, d4rl_controller=options.d4rl_controller)
    print(json.dumps(summary, indent=2))


def _train(options: argparse.Namespace) -> None:
    import torch

    from diffuser_core.config import load_config
    from diffuser_core.train.config import TrainConfig
    from diffuser_core.train.data_sets import TrainingData, load_rewarded, load_stacking, load_training_data
    from diffuser_core.train.returns import with_returns
    from diffuser_core.train.stacking_classifier import ClassifierConfig, train_stacking_classifier
    from diffuser_core.train.trainer import Trainer
    from diffuser_core.train.value import ValueTrainConfig, train_return_predictor
    if options.value and options.classifier:
        raise ValueError('a run is of a planner, of a --classifier or of a --value, one at a time')
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.classifier:
        judge = load_config(ClassifierConfig, options.config, options.overrides)
        print(json.dumps(train_stacking_classifier(judge, load_stacking(judge.data), options.command), indent=2))
        return
    if options.value:
        predictor = load_config(ValueTrainConfig, options.config, options.overrides)
        print(json.dumps(train_return_predictor(predictor, load_rewarded(predictor.data), options.command), indent=2))
        return
    config = load_config(TrainConfig, options.config, options.overrides)
    data: TrainingData = with_returns(load_rewarded(config.data.path), config.data.returns) if config.data.returns is not None \
        else load_training_data(config.data.path, whole=config.data.whole_episodes)
    out = options.out or Path('runs/train') / config.name
    summary = Trainer(config, data, out, device=options.device, command=options.command).run()
    print(json.dumps(summary, indent=2))


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The denoising settings that were given."""
    given = {'steps': options.steps, 'warm_steps': options.warm_steps, 'warm_level': options.warm_level}
    return {k: v for k, v in given.items() if v is not None}


def _evaluate_stacking(options: argparse.Namespace) -> None:
    from diffuser_core.envs.stacking_motion import COMMIT
    from diffuser_core.evaluate.stacking import Suite, evaluate, format_rows
    from diffuser_core.latency import Injected
    from diffuser_core.planner import Sampling
    chosen = _sampling(options)
    if options.realtime and not options.through_ros:
        raise ValueError('--realtime needs --through-ros: without ROS there is no clock')
    if options.through_ros and (chosen or options.commit is not None or options.workers is not None):
        raise ValueError('--through-ros runs one episode at a time, with the planner settings of config/kuka_planner.yaml; '
                         'leave out --workers, --steps, --warm-steps, --warm-level and --commit')
    if options.policy is not None and (chosen or options.commit is not None):
        raise ValueError('a baseline does not denoise; leave out --steps, --warm-steps, --warm-level and --commit')
    if options.keep_goal and options.classifier is None:
        raise ValueError('--keep-goal needs --classifier: without one the goal is given anyway')
    suite = Suite(
        checkpoint=options.checkpoint, policy=options.policy, tasks=TASKS if options.task == 'all' else (options.task,),
        episodes=options.episodes, seed_start=options.seed_start, workers=options.workers, sampling=Sampling(**chosen),
        commit=COMMIT if options.commit is None else options.commit, displace=options.displace,
        classifier=options.classifier, keep_goal=options.keep_goal, videos=options.videos,
        injected=Injected(options.delay, options.jitter, options.loss), blind=options.blind,
        ros=('realtime' if options.realtime else 'lock-step') if options.through_ros else None)
    out = options.out or Path('runs/evaluate') / (options.suite if options.policy is None else f'{options.suite}_{suite.name}')
    print(format_rows(evaluate(suite, out, options.command)['rows']))


def _evaluate_mazes(options: argparse.Namespace) -> None:
    from diffuser_core.envs.maze_policy import MAZE_SAMPLING
    from diffuser_core.evaluate.mazes import MAZE_TASKS, MazeSuite, evaluate_mazes, format_maze_rows
    sizes = tuple(LAYOUTS) if options.size == 'all' else (options.size,)
    sampling = _sampling(options)
    chosen = {name: getattr(options, name) for name in ('execution', 'replan_every', 'candidates', 'backend')
              if getattr(options, name) is not None}
    if options.policy is not None and (sampling or chosen):
        raise ValueError('a baseline does not plan; leave out --execution, --replan-every, --candidates, --backend, --steps, '
                         '--warm-steps and --warm-level')
    if options.execution == 'paper' and options.replan_every is not None:
        raise ValueError('--execution paper follows one plan; leave out --replan-every')
    kinds = {'no': (False,), 'yes': (True,), 'both': (False, True)}[options.multi_task]
    suite = MazeSuite(
        tasks=tuple(task for task, (size, multi) in MAZE_TASKS.items() if size in sizes and multi in kinds),
        checkpoint=options.checkpoint, policy=options.policy, episodes=options.episodes, seed_start=options.seed_start,
        workers=options.workers, sampling=replace(MAZE_SAMPLING, **sampling), **chosen)
    out = options.out or Path('runs/evaluate') / ('maze2d' if options.policy is None else f'maze2d_{suite.name}')
    print(format_maze_rows(evaluate_mazes(suite, out, options.command, pictures=options.pictures)['rows']))


def _evaluate_locomotion(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from diffuser_core.envs.locomotion_policy import LocomotionSettings
    from diffuser_core.evaluate.locomotion import LocomotionSuite, evaluate_locomotion, format_locomotion_rows
    sampling = _sampling(options) | ({} if options.rule is None else {'rule': options.rule})
    chosen = {name: getattr(options, name) for name in ('aim', 'guide_scale', 'candidates') if getattr(options, name) is not None}
    if options.warm:
        chosen['warm'] = True
    if (options.policy is not None or options.paper) and (sampling or chosen):
        raise ValueError('a baseline and --paper have settings of their own; leave out --guide-scale, --candidates, --warm, '
                         '--rule, --steps, --warm-steps and --warm-level')
    if options.policy is not None and (options.paper or options.replan_every != 1 and options.policy != 'mppi'):
        raise ValueError('a baseline does not plan; leave out --paper and --replan-every')
    ours = LocomotionSettings()
    settings = replace(ours, **chosen, sampling=replace(ours.sampling, **sampling)) if sampling or chosen else None
    suite = LocomotionSuite(options.robot, options.quality, options.checkpoint, options.policy, settings, options.paper,
                            options.episodes, options.seed_start, options.replan_every, options.delay, options.workers,
                            options.backend)
    name = f'{options.robot}_{options.quality}' + ('' if options.policy is None else f'_{suite.name}')
    summary = evaluate_locomotion(suite, options.out or Path('runs/evaluate') / name, options.command)
    print(format_locomotion_rows(summary['rows']))



def _choose_aim(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from diffuser_core.envs.locomotion_policy import LocomotionSettings
    from diffuser_core.evaluate.locomotion import LocomotionSuite, choose_aim, format_locomotion_rows
    ours = LocomotionSettings()
    settings = replace(ours, sampling=replace(ours.sampling, **_sampling(options)))
    suite = LocomotionSuite(options.robot, options.quality, options.checkpoint, settings=settings, episodes=options.episodes,
                            seed_start=options.seed_start, workers=options.workers, backend=options.backend)
    out = options.out or Path('runs/evaluate') / f'{options.robot}_{options.quality}_aim'
    rows = choose_aim(suite, options.aims, out, options.command)
    print(format_locomotion_rows([{**row, 'policy': f'aim {row["aim"]:g}'} for row in rows]))
    print(f'{options.checkpoint} aims at {rows[0]["aim"]:g} from now on')


def _inspect(options: argparse.Namespace) -> None:
    from diffuser_core.checkpoint import Checkpoint
    print(Checkpoint.load(options.checkpoint).describe())

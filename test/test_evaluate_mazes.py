"""The maze suite, its baselines and its command line."""

import dataclasses
import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from checkpoints import untrained_maze
from PIL import Image

from diffuser_core.cli import main
from diffuser_core.envs.maze_layout import CHANNELS, LAYOUTS
from diffuser_core.envs.maze_motion import MazeGoal
from diffuser_core.envs.maze_picture import BALL, GOAL, PLAN
from diffuser_core.envs.maze_policy import MazePolicy
from diffuser_core.envs.point_maze import PointMazeEnv
from diffuser_core.evaluate import mazes
from diffuser_core.evaluate.baselines.mazes import DISCOUNT, load_maze_transitions, maze_transitions
from diffuser_core.evaluate.maze_policies import BASELINES, FAILURES, LearnedMazePolicy, run_maze_episode
from diffuser_core.evaluate.mazes import MazeSuite, evaluate_mazes, format_maze_rows
from diffuser_core.experts.collect_mazes import collect_maze
from diffuser_core.planner import Planner


@pytest.fixture
def checkpoint(tmp_path):
    made = dataclasses.replace(untrained_maze(), provenance={'config': {'name': 'maze2d_umaze'}})
    made.save(tmp_path / 'checkpoint')
    return tmp_path / 'checkpoint'


@pytest.fixture
def here(monkeypatch):
    """Episodes run in a thread of this process instead of processes of their own."""
    def pool(suite, jobs):
        monkeypatch.setattr(mazes, '_worker', {'suite': suite, 'controllers': {}})
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(mazes, '_pool', pool)


def run(*words):
    return main(['evaluate', 'maze2d', *map(str, words)])


def summary(out):
    return json.loads((out / 'summary.json').read_text())


def test_a_run_writes_its_records_goes_on_and_keeps_to_its_settings(tmp_path, capsys, here):
    out = tmp_path / 'out'
    words = ('--size', 'umaze', '--policy', 'waypoint', '--out', out)
    assert run(*words, '--episodes', 3) == 0
    assert 'maze2d-umaze' in (printed := capsys.readouterr().out) and 'multi2d-umaze' in printed
    records = [json.loads(line) for line in (out / 'episodes.jsonl').read_text().splitlines()]
    assert {(r['task'], r['seed']) for r in records} == {(t, n) for t in ('maze2d-umaze', 'multi2d-umaze') for n in range(3)}
    assert run(*words, '--episodes', 4) == 0
    assert (summary(out)['episodes_run'], summary(out)['episodes']) == (2, 4)
    rows = {row['task']: row for row in summary(out)['rows']}
    records = [json.loads(line) for line in (out / 'episodes.jsonl').read_text().splitlines()]
    scores = [record['score'] for record in records if record['task'] == 'maze2d-umaze']
    assert rows['maze2d-umaze']['score'] == pytest.approx(np.mean(scores))
    assert rows['maze2d-umaze']['ci95'][0] <= rows['maze2d-umaze']['score'] <= rows['maze2d-umaze']['ci95'][1]
    assert (rows['maze2d-umaze']['paper'], rows['multi2d-umaze']['paper']) == (113.9, 128.9)
    assert rows['maze2d-umaze']['share_in_goal'] == pytest.approx(rows['maze2d-umaze']['return'] / 300)
    assert run('--size', 'medium', '--multi-task', 'no', '--policy', 'waypoint', '--out', out, '--episodes', 1) == 0
    assert [row['task'] for row in summary(out)['rows']] == ['maze2d-medium'] and summary(out)['episodes_run'] == 1
    assert run('--size', 'umaze', '--policy', 'random', '--out', out) == 2
    assert 'holds results of other settings (policy)' in capsys.readouterr().err


def test_a_planner_is_run_and_drawn(tmp_path, checkpoint, here):
    out = tmp_path / 'out'
    words = ('--size', 'umaze', '--multi-task', 'no', '--checkpoint', checkpoint, '--episodes', 2, '--replan-every', 50,
             '--candidates', 2, '--warm-steps', 1, '--pictures', '--out', out)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='run again')
        assert run(*words) == 0
    (row,) = summary(out)['rows']
    assert row['policy'] == 'diffuser' and row['planning_ms']['p50'] > 0.0
    assert summary(out)['sampling']['warm_steps'] == 1 and summary(out)['replan_every'] == 50
    assert sorted(summary(out)['pictures']) == ['pictures/maze2d-umaze_best.png', 'pictures/maze2d-umaze_worst.png']
    with Image.open(out / 'pictures' / 'maze2d-umaze_best.png') as picture:
        assert picture.size == (240, 240) and picture.text['Description'].startswith('maze2d-umaze, best of 2: score ')
        assert {GOAL, PLAN, BALL} <= {colour for _, colour in picture.getcolors(240 * 240)}
    lines = out / 'episodes.jsonl'
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    lines.write_text(''.join(json.dumps({**record, 'score': record['score'] + 1.0}) + '\n' for record in records))
    with pytest.warns(UserWarning, match='scored differently: maze2d-umaze seed'):
        assert run(*words) == 0


def test_the_papers_execution_takes_the_one_plan_that_it_draws(tmp_path, checkpoint, here):
    words = ('--size', 'umaze', '--multi-task', 'no', '--checkpoint', checkpoint, '--episodes', 1, '--steps', 1)
    assert run(*words, '--execution', 'paper', '--out', tmp_path / 'paper') == 0
    (record,) = map(json.loads, (tmp_path / 'paper' / 'episodes.jsonl').read_text().splitlines())
    assert summary(tmp_path / 'paper')['candidates'] == 1 and record['replans'] == 1
    assert [MazeSuite(execution=e).drawn for e in ('states', 'actions', 'paper')] == [8, 8, 1]
    assert MazeSuite(execution='paper', candidates=3).drawn == 3


def test_shipped_planners_of_several_mazes_share_a_folder():
    """A run of one size goes on with another size in the same folder, since the settings name the weights of all of them."""
    assert MazeSuite(('maze2d-umaze',)).settings() == MazeSuite(('multi2d-large', 'maze2d-medium')).settings()


@pytest.mark.parametrize('words, why', [
    (('--checkpoint', 'nowhere', '--size', 'umaze'), 'nowhere'), (('--checkpoint', 'x'), 'is for one maze'),
    (('--policy', 'waypoint', '--checkpoint', 'x'), 'a baseline has no checkpoint'), (('--episodes', '0'), 'at least 1'),
    (('--size', 'umaze', '--policy', 'no/such/policy.pt'), 'no trained baseline at no/such/policy.pt'),
    (('--policy', 'some/policy.pt'), 'is for one maze'),
    (('--policy', 'waypoint', '--warm-steps', '2'), 'a baseline does not plan; leave out'),
    (('--policy', 'random', '--replan-every', '5'), 'a baseline does not plan; leave out'),
    (('--execution', 'paper', '--replan-every', '5'), 'follows one plan; leave out --replan-every')])
def test_what_cannot_be_run_is_said(tmp_path, capsys, words, why):
    assert run(*words, '--out', tmp_path / 'out') == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_planner_for_another_maze_is_refused(tmp_path, checkpoint, capsys):
    assert run('--size', 'large', '--checkpoint', checkpoint, '--out', tmp_path / 'out') == 2
    assert 'is a planner for the maze umaze, not large' in capsys.readouterr().err


def test_an_episode_that_never_comes_to_the_goal_or_leaves_it_is_a_failure():
    class Driver:
        replans = 0

        def __init__(self, force):
            self.force = force

        def reset(self, seed):
            self.controller = BASELINES['waypoint'](LAYOUTS['umaze'])
            self.controller.reset(seed)

        def set_goal(self, goal, observation):
            self.goal = goal
            self.controller.set_goal(goal, observation)

        def replan(self, observation, now):
            return None

        def command(self, observation, now):
            decision = self.controller.command(observation, now)
            return dataclasses.replace(decision, actions=self.force(now, decision.actions))

    env = PointMazeEnv('umaze')
    still = run_maze_episode(Driver(lambda now, actions: 0.0 * actions), env, 'maze2d-umaze', 1)
    assert (still['failure'], still['reached_at'], still['return']) == (FAILURES[0], None, 0.0)
    away = Driver(lambda now, actions: actions if now < 2.0 else np.array([[0.0, 1.0]]))
    leaving = run_maze_episode(away, env, 'maze2d-umaze', 1)
    assert leaving['failure'] == FAILURES[1] and leaving['reached_at'] < 200 and leaving['return'] > 0.0
    staying = run_maze_episode(Driver(lambda now, actions: actions), env, 'maze2d-umaze', 1)
    assert staying['failure'] is None
    assert staying['return'] == pytest.approx(300 - staying['reached_at'] + 1, abs=3)


def test_an_episode_repeats_and_replans_as_often_as_it_is_told():
    env, policy = PointMazeEnv('umaze'), MazePolicy(Planner(untrained_maze()), LAYOUTS['umaze'], candidates=1)
    first, second = (run_maze_episode(policy, env, 'maze2d-umaze', 3, replan_every=100) for _ in range(2))
    assert first['return'] == second['return'] and first['start'] == second['start']
    assert first['replans'] == second['replans'] >= 3


# ---- Learned baselines -----------------------------------------------------------------------------------------------


def test_transitions_lead_to_where_their_journey_ended(tmp_path):
    collect_maze(tmp_path, 'umaze', 70_000, 1, steps=2000, progress=False)
    data = load_maze_transitions(tmp_path)
    ends = np.flatnonzero(data.terminals)
    assert len(ends) > 5 and data.observations.shape[1] == 6 and data.actions.shape[1] == 2
    np.testing.assert_array_equal(data.next_observations[ends, :2], data.next_observations[ends, 4:])
    np.testing.assert_array_equal(data.observations[:, 4:], data.next_observations[:, 4:])
    inside = np.hypot(*(data.next_observations[:, :2] - data.next_observations[:, 4:]).T) <= 0.5
    np.testing.assert_array_equal(data.rewards[data.terminals == 0], inside[data.terminals == 0])
    assert data.rewards[ends] == pytest.approx(1.0 / (1.0 - DISCOUNT))
    follows = np.flatnonzero(data.terminals[:-1] == 0)
    np.testing.assert_array_equal(data.next_observations[follows], data.observations[follows + 1])


def test_data_of_another_kind_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='must hold one data set'):
        load_maze_transitions(tmp_path)
    with pytest.raises(ValueError, match='a maze has 6 channels, the data 3'):
        maze_transitions(np.zeros((4, 3), dtype=np.float32), np.array([[0, 4]]), '')


class ToTheGoal(torch.nn.Module):
    """The waypoint controller's law without waypoints."""

    def forward(self, x):
        return (10.0 * (x[:, 4:] - x[:, :2]) - x[:, 2:4]).clamp(-1.0, 1.0)


def test_a_learned_policy_runs_from_its_file(tmp_path):
    folder = tmp_path / 'a_learned_baseline'
    folder.mkdir()
    torch.jit.script(ToTheGoal()).save(str(folder / 'policy.pt'))
    policy = LearnedMazePolicy.load(folder / 'policy.pt')
    policy.set_goal(MazeGoal(1.0, 1.05), {})
    force = policy.command(dict(zip(CHANNELS, (1.0, 1.0, 0.02, 0.0))), 0.0).actions
    np.testing.assert_allclose(force, [[-0.02, 0.5]], atol=1e-6)
    suite = MazeSuite(('multi2d-umaze',), policy=str(folder / 'policy.pt'), episodes=2, workers=1)
    done = evaluate_mazes(suite, tmp_path / 'out', 'test')
    assert done['rows'][0]['policy'] == 'a_learned_baseline' and done['rows'][0]['episodes'] == 2
    assert format_maze_rows(done['rows']).splitlines()[1].split()[:2] == ['a_learned_baseline', 'multi2d-umaze']
    torch.jit.script(torch.nn.Linear(4, 2)).save(str(folder / 'policy.pt'))
    with pytest.raises(ValueError, match='is not a trained baseline of a maze'):
        LearnedMazePolicy.load(folder / 'policy.pt')
    (folder / 'policy.pt').write_bytes(b'nonsense')
    with pytest.raises(ValueError, match='is not a trained baseline of a maze'):
        LearnedMazePolicy.load(folder / 'policy.pt')


def test_every_suite_has_its_own_number_of_episodes():
    from diffuser_core.cli import _parser
    given = {suite: _parser().parse_args(['evaluate', suite]) for suite in ('stacking', 'maze2d', 'locomotion')}
    assert {suite: (options.episodes, options.seed_start) for suite, options in given.items()} == {
        'stacking': (100, 0), 'maze2d': (100, 0), 'locomotion': (15, 100)}

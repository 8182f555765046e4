"""The classifier of block stacking: its labels, its training, its file, and plans guided by it."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from checkpoints import untrained, untrained_stacking

from diffuser_core.checkpoint import CheckpointError
from diffuser_core.data.demonstrations import SegmentData
from diffuser_core.envs.stacking import GROUND, SLAB_HEIGHT, standing_relations
from diffuser_core.envs.stacking_classifier import CLASSES, class_of, labels, load_classifier
from diffuser_core.envs.stacking_features import FEATURES, PLACES, UNITS, as_features, features, slots
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_policy import StackingPolicy
from diffuser_core.normalize import Normalizer
from diffuser_core.planner import Planner, Sampling
from diffuser_core.train.stacking_classifier import ClassifierConfig, train_stacking_classifier
from diffuser_core.trajectory import Channels


def states(count, seed=0):
    """States (count, 39) in which the red block stands on another one, on the ground or nowhere, or is held there."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((count, 39))
    blocks = rows[:, 7:].reshape(count, 4, 8)
    azimuth = np.array([-1.5, 0.0, 1.2, 2.4]) + rng.uniform(-0.2, 0.2, (count, 4))
    blocks[:, :, 0], blocks[:, :, 1] = 0.6 * np.cos(azimuth), 0.6 * np.sin(azimuth)
    blocks[:, :, 2] = SLAB_HEIGHT / 2
    below = rng.integers(0, 5, count)  # 1 to 3: on that block; 0: on the ground; 4: in the air
    on = (below > 0) & (below < 4)
    blocks[on, 0, :3] = blocks[on, below[on], :3] + (0.02, -0.03, SLAB_HEIGHT)
    blocks[below == 4, 0, 2] += 0.2
    blocks[:, 0, 7] = rng.random(count) < 0.2
    return rows


def data_of(count):
    rows = states(count).astype(np.float32)
    bounds = np.array([[0, count]])
    return as_features(SegmentData(rows, bounds, np.array([[0, 1]]), np.array([0]), (), (), 1 / 24, 'fingerprint-of-states'))


def test_labels_are_the_rules_of_the_task():
    rows = states(400)
    found = labels(features(rows, 0))
    assert found.shape == (400, 4) and found.any(axis=0).all() and (~found).all(axis=1).any()
    for row, said in zip(rows, found):
        blocks = row[7:].reshape(4, 8)
        stands = standing_relations(blocks[:, :3], blocks[:, 7], np.zeros(4))
        assert [(0, n) in stands for n in slots(0)[1:]] == said[:3].tolist()
        assert said[3] == (blocks[0, 2] == SLAB_HEIGHT / 2 and not blocks[0, 7])


def test_classes_of_moves():
    assert [CLASSES[class_of(move)] for move in ((0, 1), (1, 0), (3, 2), (2, 3), (2, GROUND))] == [
        'moved on first', 'moved on first', 'moved on third', 'moved on third', 'moved on ground']


def test_it_learns_is_saved_and_read_again(tmp_path):
    data, out = data_of(4000), tmp_path / 'run' / 'classifier.safetensors'
    planner = dataclasses.replace(untrained_stacking(), normalizer=Normalizer.fit('limits', data.observations))
    planner.save(tmp_path / 'planner')
    config = ClassifierConfig('unused', str(tmp_path / 'planner'), str(out), width=64, steps=800, batch=128, learning_rate=3e-3)
    summary = train_stacking_classifier(config, data, 'train it')
    assert summary['accuracy_by_level']['0'] > summary['accuracy_by_level']['14'] + 0.05
    assert [path.name for path in out.parent.iterdir()] == ['classifier.safetensors']
    network = load_classifier(out)
    answers = network(planner.normalizer.normalize(torch.from_numpy(data.observations)), torch.tensor([0])) > 0
    right = answers.numpy() == labels(data.observations)
    assert right[:, 3].mean() > 0.95  # whether it is on the ground shows in one number, on which block needs longer training
    again = train_stacking_classifier(config, data, 'train it')
    assert json.dumps(again) == json.dumps(summary)


def test_what_is_no_classifier_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match='no classifier at .*missing'):
        load_classifier(tmp_path / 'missing')
    untrained_stacking().save(tmp_path / 'planner')
    for content in (b'', b'x' * 100, (tmp_path / 'planner' / 'model.safetensors').read_bytes()):
        (tmp_path / 'bad').write_bytes(content)
        with pytest.raises(CheckpointError, match='bad is damaged or no classifier'):
            load_classifier(tmp_path / 'bad')
    channels = Channels((*FEATURES[:-1], 'wheel'), UNITS)
    untrained(channels).save(tmp_path / 'other')
    with pytest.raises(ValueError, match='not a stacking planner'):
        train_stacking_classifier(ClassifierConfig('unused', str(tmp_path / 'other'), str(tmp_path / 'out')), data_of(100), '')
    with pytest.raises(ValueError, match='steps, batch and learning_rate positive'):
        ClassifierConfig('a', 'b', 'c', steps=0)


@pytest.mark.parametrize('keep_goal', [False, True])
def test_a_classifier_takes_the_place_of_the_goal_or_joins_it(keep_goal):
    asked = []

    class Watched(Planner):
        def candidates(self, observation, conditions=None, **options):
            asked.append((conditions, options.get('guide')))
            return super().candidates(observation, conditions, **options)

    def towards_the_second(x, i):
        return torch.stack([0 * x[..., 0], x[..., 3], 0 * x[..., 0], 0 * x[..., 0]], dim=-1)

    policy = StackingPolicy(Watched(untrained_stacking()), sampling=Sampling(2, 2, rule='score'), classifier=towards_the_second,
                            keep_goal=keep_goal)
    observation = dict(zip((f'lbr_iiwa_joint_{n}' for n in range(1, 8)), (0.0, 0.4, 0.0, -1.5, 0.0, 1.2, 0.0)))
    for n, block in enumerate(('red', 'green', 'blue', 'yellow')):
        place = (0.6 * np.cos(n), 0.6 * np.sin(n), 0.03, 0.0)
        observation |= dict(zip((f'{block}.{field}' for field in ('x', 'y', 'z', 'attached')), place))
    policy.set_goal(StackingGoal.parse('relations', ['red on blue']), observation)
    assert policy.act(observation, 0.0).subgoal == (0, 2)
    conditions, guide = asked[-1]
    column = policy.planner.channels.names.index(PLACES[0])
    assert bool(conditions.mask[-1, column]) is keep_goal
    plans = torch.zeros(1, 16, 16)
    plans[..., column] = 0.3  # 0.1 of the normal range, which the class 'on second' likes
    assert float(guide.value(plans, None)) == pytest.approx(0.1 * policy.GUIDE_SCALE)

"""From a stacking goal to commands: goals, what comes next, holding, starting afresh."""

import numpy as np
import pytest
from checkpoints import untrained, untrained_stacking
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES
from diffuser_core.envs.stacking import BLOCKS, CHANNELS, SLAB_HEIGHT
from diffuser_core.envs.stacking_features import ATTACHED, FEATURES, PLACES, cartesian, cylindrical, features
from diffuser_core.envs.stacking_goal import GoalError, StackingGoal
from diffuser_core.envs.stacking_policy import StackingPolicy
from diffuser_core.planner import Planner
from diffuser_core.trajectory import Channels, Plan

GROUND = np.array([[0.6, 0.0], [0.0, 0.6], [0.0, -0.6], [-0.4, 0.4]])
POSITIONS = tuple(f'{block}.{axis}' for block in BLOCKS for axis in 'xyz')
TICK = 1 / 24


def observation(heights=(0, 0, 0, 0), places=GROUND, joints=0.1, held=None):
    """Blocks at `places` (4, 2), `heights` slabs above the ground."""
    values = dict.fromkeys(JOINT_NAMES, joints)
    blocks = np.column_stack([places, SLAB_HEIGHT * (np.asarray(heights) + 0.5)])
    values |= dict(zip(POSITIONS, blocks.ravel()))
    values |= {name: float(n == held) for n, name in enumerate(ATTACHED)}
    return values


def stacked(*pairs):
    """Observation in which each pair (upper, lower) stands, given bottom first."""
    places, heights = GROUND.copy(), [0, 0, 0, 0]
    for upper, lower in pairs:
        places[upper], heights[upper] = places[lower], heights[lower] + 1
    return observation(heights, places)


class ScriptedPlanner(Planner):
    """A planner whose plans jump to the conditioned end at once, or build `proposals` where no goal is given."""

    def __init__(self):
        super().__init__(untrained_stacking())
        self.proposals = []
        self.asked = []

    def candidates(self, observation, conditions=None, *, count, warm_start=None, sampling=None, t0=0.0, **unused):
        self.asked.append((conditions, warm_start))
        plans = []
        for _ in range(count):
            values = np.repeat(observation[None], 16, axis=0)
            if conditions is not None:
                values[-1] = np.where(conditions.mask[-1], conditions.values[-1], values[-1])
            elif self.proposals:
                upper, lower = self.proposals.pop(0)
                rows = self.channels.indices(PLACES).reshape(4, 3)
                values[-1, rows[upper]] = values[-1, rows[lower]] + (0.01, -0.02, SLAB_HEIGHT + 0.004)
            plans.append(Plan(values, self.channels, t0, self.step_dt, {'warm': warm_start is not None}))
        return plans


@pytest.fixture
def policy():
    return StackingPolicy(ScriptedPlanner(), patience=3)


@pytest.mark.parametrize(('task', 'relations', 'message'), [
    ('juggle', [], "unknown task 'juggle'; this robot knows stack, relations"),
    ('stack', ['red on green'], 'takes no relations'),
    ('relations', [], 'at least one relation'),
    ('relations', ['red on violet'], "unknown block 'violet'; known blocks are red, green, blue, yellow"),
    ('relations', ['red above green'], "not of the form"),
    ('relations', ['red on red'], 'puts a block on itself'),
    ('relations', ['red on green', 'green on blue', 'blue on red'], 'form a cycle: red on green, green on blue, blue on red'),
    ('relations', ['red on green', 'red on blue'], 'red cannot stand on both green and blue'),
    ('relations', ['red on green', 'blue on green'], 'green cannot carry both red and blue'),
])
def test_impossible_goals_are_refused_with_the_reason(task, relations, message):
    with pytest.raises(GoalError, match=message):
        StackingGoal.parse(task, relations)


def test_relations_are_put_in_building_order():
    goal = StackingGoal.parse('relations', ['blue on red', 'red on green', 'red on green'])
    assert goal.relations == ((0, 1), (2, 0))
    assert goal.reached({(0, 1), (2, 0), (3, 2)}) and not goal.reached({(2, 0)})
    assert StackingGoal('stack').reached({(0, 1), (2, 0), (3, 2)}) and not StackingGoal('stack').reached({(0, 1), (2, 0)})


def test_a_checkpoint_of_another_robot_is_refused_naming_the_channels():
    other = Channels((*(n for n in FEATURES if n != JOINT_NAMES[6]), 'wheel'), ('1',) * 23)
    with pytest.raises(ValueError, match='lacks the channels lbr_iiwa_joint_7; it has the unknown channels wheel'):
        StackingPolicy(Planner(untrained(other, PLACES)))
    goalless = untrained(Channels(FEATURES, ('1',) * 23))
    with pytest.raises(ValueError, match='not trained with goals for red.azimuth'):
        StackingPolicy(Planner(goalless))


def test_a_goal_that_needs_a_covered_block_is_refused_and_the_old_goal_stays(policy):
    old = StackingGoal('stack')
    policy.set_goal(old, observation())
    with pytest.raises(GoalError, match='red on green needs green free, but blue stands on it'):
        policy.set_goal(StackingGoal.parse('relations', ['red on green']), stacked((2, 1)))
    assert policy.goal == old
    policy.set_goal(StackingGoal.parse('relations', ['blue on green', 'red on blue']), stacked((2, 1)))


def test_without_a_goal_the_arm_holds_and_nothing_is_planned(policy):
    first = policy.act(observation(joints=0.1), 0.0)
    later = policy.act(observation(joints=0.1 + 1e-3), TICK)
    assert first.plan is None and not first.reached and not first.gripper.any()
    assert np.array_equal(first.joints, later.joints) and first.joints.shape == (12, 7)
    assert policy.replans == 0
    assert policy.act(observation(held=2), 2 * TICK).gripper.all()


def test_relations_are_built_bottom_up_and_then_held(policy):
    policy.set_goal(StackingGoal.parse('relations', ['blue on red', 'red on green']), observation())
    decision = policy.act(observation(), 0.0)
    assert decision.subgoal == (0, 1)
    conditions, warm = policy.planner.asked[-1]
    end = dict(zip(policy.planner.channels.names, conditions.values[-1]))
    assert [end['red.azimuth'], end['red.radius'], end['red.z']] == pytest.approx([np.pi / 2, 0.6, 1.5 * SLAB_HEIGHT])
    assert [end['blue.azimuth'], end['blue.radius'], end['blue.z']] == pytest.approx([-np.pi / 2, 0.6, 0.5 * SLAB_HEIGHT])
    assert warm is None
    assert policy.act(observation(), TICK).plan.provenance['warm']
    second = policy.act(stacked((0, 1)), 2 * TICK)
    assert second.subgoal == (2, 0) and not second.plan.provenance['warm']
    done = policy.act(stacked((0, 1), (2, 0)), 3 * TICK)
    assert done.reached and done.plan is None


def test_the_next_relation_waits_until_the_arm_has_finished_its_plan(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green', 'blue on red']), observation())
    policy.act(observation(), 0.0)
    moved = stacked((0, 1)) | {JOINT_NAMES[0]: 1.0}
    assert policy.act(moved, TICK).subgoal == (0, 1)


def test_the_task_stack_pursues_the_first_proposal_that_builds_higher(policy):
    policy.planner.proposals = [(3, 2), (0, 1), (2, 0)]  # beside the tower; what stands already; on top of it
    policy.set_goal(StackingGoal('stack'), stacked((0, 1)))
    for n in range(2):
        decision = policy.act(stacked((0, 1)), n * TICK)
        assert decision.subgoal is None and decision.plan is None and not decision.reached
    decision = policy.act(stacked((0, 1)), 2 * TICK)
    assert decision.subgoal == (2, 0) and not decision.plan.provenance['warm']
    assert policy.act(stacked((0, 1)), 3 * TICK).plan.provenance['warm']
    end = dict(zip(FEATURES, policy.planner.asked[-1][0].values[-1]))
    assert end['blue.z'] == pytest.approx(2.5 * SLAB_HEIGHT)


def test_an_arm_that_stands_still_plans_afresh_after_some_patience(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), observation())
    warm = [policy.act(observation(), n * TICK).plan.provenance['warm'] for n in range(10)]
    assert warm[0] is False and warm[1:4] == [True] * 3 and False in warm[4:]


def test_a_held_block_is_still_brought_to_its_place_when_planning_starts_afresh(policy):
    policy.planner.proposals = [(0, 1), (2, 3)]
    policy.set_goal(StackingGoal('stack'), observation())
    assert policy.act(observation(), 0.0).subgoal == (0, 1)
    carried = [policy.act(observation(held=0), n * TICK) for n in range(1, 12)]
    assert {decision.subgoal for decision in carried} == {(0, 1)}
    assert not all(decision.plan.provenance['warm'] for decision in carried)
    dropped = [policy.act(observation(), n * TICK) for n in range(12, 20)]
    assert (2, 3) in {decision.subgoal for decision in dropped}


def test_the_same_goal_again_keeps_the_plan_and_another_one_restarts(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), observation())
    policy.act(observation(), 0.0)
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), observation())
    assert policy.act(observation(), TICK).plan.provenance['warm']
    policy.set_goal(StackingGoal.parse('relations', ['blue on green']), observation())
    decision = policy.act(observation(), 2 * TICK)
    assert not decision.plan.provenance['warm'] and decision.subgoal == (2, 1)


def test_clear_and_reset(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), observation())
    policy.act(observation(), 0.0)
    policy.clear_goal()
    assert policy.act(observation(), TICK).plan is None and policy.replans == 1
    policy.reset(seed=1)
    assert policy.replans == 0 and policy.goal is None


@settings(deadline=None)
@given(arrays(np.float64, (4, 3), elements=st.floats(-1, 1)))
def test_cylindrical_coordinates_round_trip(positions):
    assert cartesian(cylindrical(positions)) == pytest.approx(positions, abs=1e-9)


def test_features_are_the_named_values_of_a_state():
    state = np.arange(39.0)
    by_name = dict(zip(FEATURES, features(state)))
    named = dict(zip(CHANNELS, state))
    assert by_name['lbr_iiwa_joint_3'] == named['lbr_iiwa_joint_3'] and by_name['blue.attached'] == named['blue.attached']
    assert by_name['green.radius'] == pytest.approx(np.hypot(named['green.x'], named['green.y']))
    assert by_name['green.azimuth'] == pytest.approx(np.arctan2(named['green.y'], named['green.x']))
    assert features(np.stack([state, state])).shape == (2, 23)


def test_an_observation_that_lacks_a_channel_is_refused_by_name(policy):
    values = observation()
    del values['green.y']
    with pytest.raises(KeyError, match='lacks channel green.y'):
        policy.act(values, 0.0)

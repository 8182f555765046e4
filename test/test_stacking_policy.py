"""From a stacking goal to commands: goals, what comes next, holding, starting afresh."""

import numpy as np
import pytest
from checkpoints import untrained, untrained_stacking
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES, inverse_kinematics
from diffuser_core.envs.stacking import BLOCKS, CHANNELS, GROUND, SLAB_HEIGHT
from diffuser_core.envs.stacking_features import (
    ATTACHED,
    FEATURES,
    PLACES,
    TIP,
    UNITS,
    cartesian,
    cylindrical,
    features,
    named_plan,
    slots,
)
from diffuser_core.envs.stacking_goal import GoalError, StackingGoal
from diffuser_core.envs.stacking_motion import StackingMotion
from diffuser_core.envs.stacking_policy import StackingPolicy
from diffuser_core.planner import Planner
from diffuser_core.trajectory import Channels, Plan

LAYOUT = np.array([[0.6, 0.0], [0.0, 0.6], [0.0, -0.6], [-0.4, 0.4]])
POSITIONS = tuple(f'{block}.{axis}' for block in BLOCKS for axis in 'xyz')
TICK = 1 / 24


def observation(heights=(0, 0, 0, 0), places=LAYOUT, tip=(0.1, 0.5, 0.3), held=None):
    """Blocks at `places` (4, 2), `heights` slabs above the ground."""
    values = dict(zip(JOINT_NAMES, inverse_kinematics(*tip)))
    blocks = np.column_stack([places, SLAB_HEIGHT * (np.asarray(heights) + 0.5)])
    values |= dict(zip(POSITIONS, blocks.ravel()))
    values |= {f'{block}.attached': float(n == held) for n, block in enumerate(BLOCKS)}
    return values


def stacked(*pairs):
    """Observation in which each pair (upper, lower) stands, given bottom first."""
    places, heights = LAYOUT.copy(), [0, 0, 0, 0]
    for upper, lower in pairs:
        places[upper], heights[upper] = places[lower], heights[lower] + 1
    return observation(heights, places)


class ScriptedPlanner(Planner):
    """A planner whose plans jump to the conditioned end at once; without a goal, they put the moved block on another one."""

    def __init__(self):
        super().__init__(untrained_stacking())
        self.onto = []  # which of the others ('first', ...) the next proposals build on, or None to leave the block where it is
        self.asked = []
        self.contact = None  # the plans' contact, a value a step, in place of the observed one

    def candidates(self, observation, conditions=None, *, count, warm_start=None, sampling=None, t0=0.0, **unused):
        self.asked.append((conditions, warm_start))
        plans = []
        for _ in range(count):
            values = np.repeat(observation[None], 16, axis=0)
            if conditions is not None:
                values[-1] = np.where(conditions.mask[-1], conditions.values[-1], values[-1])
            elif self.onto and (other := self.onto.pop(0)) is not None:
                moved, below = (self.channels.indices([f'{name}.{field}' for field in ('azimuth', 'radius', 'z')])
                                for name in ('moved', other))
                values[-1, moved] = values[-1, below] + (0.01, -0.02, SLAB_HEIGHT + 0.004)
            if self.contact is not None:
                values[:, self.channels.names.index(ATTACHED)] = self.contact
            plans.append(Plan(values, self.channels, t0, self.step_dt, {'warm': warm_start is not None}))
        return plans

    def end(self):
        """Channel -> value at the end that the last plan was asked for."""
        return dict(zip(self.channels.names, self.asked[-1][0].values[-1]))


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
    other = Channels((*FEATURES[:-1], 'wheel'), UNITS)
    with pytest.raises(ValueError, match='lacks the channels third.z; it has the unknown channels wheel'):
        StackingPolicy(Planner(untrained(other, PLACES[:-1])))
    goalless = untrained(Channels(FEATURES, UNITS))
    with pytest.raises(ValueError, match='not trained with goals for moved.azimuth'):
        StackingPolicy(Planner(goalless))


def test_what_is_in_the_way_is_put_on_the_ground_first(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), stacked((2, 1)))
    assert policy.act(stacked((2, 1)), 0.0).subgoal == (2, GROUND)
    end = policy.planner.end()
    assert end['moved.z'] == pytest.approx(SLAB_HEIGHT / 2) and end['moved.radius'] == pytest.approx(0.6)
    place = cartesian(np.array([end['moved.azimuth'], end['moved.radius'], end['moved.z']]))[:2]
    assert np.linalg.norm(LAYOUT[[0, 1, 3]] - place, axis=1).min() > 0.3
    policy.act(observation(held=2), TICK)
    down = LAYOUT.copy()
    down[2] = place
    far = observation(places=down, tip=(1.0, 0.5, 0.3))
    assert policy.act(far, 2 * TICK).subgoal == (2, GROUND)  # the arm has not finished its plan
    assert policy.act(far, 3 * TICK).subgoal == (0, 1)


def test_what_is_in_the_way_goes_where_it_is_wanted_if_that_can_be_done_at_once(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green', 'blue on yellow']), stacked((2, 1)))
    assert policy.act(stacked((2, 1)), 0.0).subgoal == (2, 3)


def test_without_a_goal_the_arm_holds_and_nothing_is_planned(policy):
    first = policy.act(observation(), 0.0)
    later = policy.act(observation(tip=(0.101, 0.501, 0.3)), TICK)
    assert first.plan is None and not first.reached and not first.gripper.any()
    assert np.array_equal(first.joints, later.joints) and first.joints.shape == (12, 7)
    assert policy.replans == 0
    assert policy.act(observation(held=2), 2 * TICK).gripper.all()


def test_relations_are_built_bottom_up_and_then_held(policy):
    policy.set_goal(StackingGoal.parse('relations', ['blue on red', 'red on green']), observation())
    decision = policy.act(observation(), 0.0)
    assert decision.subgoal == (0, 1)
    end, (_, warm) = policy.planner.end(), policy.planner.asked[-1]
    assert [end['moved.azimuth'], end['moved.radius'], end['moved.z']] == pytest.approx([np.pi / 2, 0.6, 1.5 * SLAB_HEIGHT])
    assert [end['second.azimuth'], end['second.radius'], end['second.z']] == pytest.approx([-np.pi / 2, 0.6, 0.5 * SLAB_HEIGHT])
    assert warm is None
    assert policy.act(observation(), TICK).plan.provenance['warm']
    moved = policy.act(stacked((0, 1)), 2 * TICK)  # a jump, for which no plan was made
    assert moved.subgoal == (0, 1) and not moved.plan.provenance['warm']
    second = policy.act(stacked((0, 1)), 3 * TICK)
    assert second.subgoal == (2, 0) and not second.plan.provenance['warm']
    policy.act(stacked((0, 1), (2, 0)), 4 * TICK)
    done = policy.act(stacked((0, 1), (2, 0)), 5 * TICK)
    assert done.reached and done.plan is None


def test_the_next_relation_waits_until_the_arm_has_finished_its_plan(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green', 'blue on red']), observation())
    policy.act(observation(held=0), 0.0)
    moved = stacked((0, 1)) | dict(zip(JOINT_NAMES, inverse_kinematics(1.0, 0.5, 0.3)))
    assert policy.act(moved, TICK).subgoal == (0, 1)


def test_the_task_stack_pursues_the_first_proposal_that_builds_higher(policy):
    policy.PROPOSALS = 2
    policy.planner.onto = ['third', None, 'second', 'second', 'third', 'first']  # red, blue and yellow are free, in this order
    policy.set_goal(StackingGoal('stack'), stacked((0, 1)))
    decision = policy.act(stacked((0, 1)), 0.0)  # red on yellow or staying builds no higher
    assert decision.subgoal is None and decision.plan is None and not decision.reached
    decision = policy.act(stacked((0, 1)), TICK)  # blue on green, which red covers
    assert decision.subgoal is None
    decision = policy.act(stacked((0, 1)), 2 * TICK)  # yellow on blue, or on red: the higher tower
    assert decision.subgoal == (3, 0)
    assert policy.act(stacked((0, 1)), 3 * TICK).plan.provenance['warm']
    assert policy.planner.end()['moved.z'] == pytest.approx(2.5 * SLAB_HEIGHT)


def test_an_arm_that_stands_still_plans_afresh_after_some_patience(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), observation())
    warm = [policy.act(observation(), n * TICK).plan.provenance['warm'] for n in range(10)]
    assert warm[0] is False and warm[1:4] == [True] * 3 and False in warm[4:]


def test_a_held_block_is_still_brought_to_its_place_when_planning_starts_afresh(policy):
    policy.planner.onto = ['first']
    policy.set_goal(StackingGoal('stack'), observation())
    assert policy.act(observation(), 0.0).subgoal == (0, 1)
    carried = [policy.act(observation(held=0), n * TICK) for n in range(1, 12)]
    assert {decision.subgoal for decision in carried} == {(0, 1)}
    assert not all(decision.plan.provenance['warm'] for decision in carried)


def test_a_block_that_is_held_but_not_wanted_is_put_down(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), observation(held=3))
    assert policy.act(observation(held=3), 0.0).subgoal == (3, GROUND)


def test_a_block_that_is_knocked_away_starts_a_new_plan_and_what_it_undid_is_built_again(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green', 'blue on red']), stacked((0, 1)))
    assert policy.act(stacked((0, 1)), 0.0).subgoal == (2, 0)
    assert policy.act(stacked((0, 1)), TICK).plan.provenance['warm']
    away = LAYOUT.copy()
    away[0] = (0.5, -0.1)
    decision = policy.act(observation(places=away), 2 * TICK)
    assert decision.subgoal == (0, 1) and not decision.plan.provenance['warm']
    nearer = away.copy()
    nearer[1] += (0.05, 0.0)
    assert not policy.act(observation(places=nearer), 3 * TICK).plan.provenance['warm']
    assert policy.planner.end()['moved.azimuth'] == pytest.approx(np.arctan2(*nearer[1][::-1]))


@pytest.mark.parametrize(('planned', 'held', 'kept'), [(0.0, None, True), (1.0, 0, True), (1.0, None, False), (0.0, 0, False)])
def test_a_plan_that_contact_contradicts_is_dropped(policy, planned, held, kept):
    policy.planner.contact = planned
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), observation(held=held))
    assert not policy.act(observation(held=held), 0.0).plan.provenance['warm']
    assert policy.act(observation(held=held), TICK).plan.provenance['warm'] is kept


def test_contact_that_is_only_early_or_late_by_a_step_is_no_contradiction(policy):
    policy.planner.contact = np.arange(16) >= 1
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), observation())
    policy.act(observation(), 0.0)
    assert policy.act(observation(), TICK).plan.provenance['warm']


def test_an_arm_that_was_carried_off_gets_a_plan_that_begins_where_it_is(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), observation())
    policy.act(observation(), 0.0)
    assert policy.act(observation(), TICK).plan.provenance['committed'] > 0
    plan = policy.act(observation(tip=(0.5, 0.5, 0.6)), 2 * TICK).plan
    assert (plan.provenance['warm'], plan.provenance['committed']) == (False, 0)
    conditions, _ = policy.planner.asked[-1]
    assert not conditions.mask[1:-1].any()


def test_the_contact_of_the_last_plan_is_kept_with_its_motion(policy):
    policy.planner.contact = np.linspace(0.0, 1.0, 16)
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), observation())
    first = policy.act(observation(), 0.0)
    assert first.plan.provenance['warm'] is False
    policy.act(observation(), TICK)
    conditions, _ = policy.planner.asked[-1]
    column = policy.planner.channels.names.index(ATTACHED)
    assert conditions.mask[:, column].tolist() == [False, True, True, True, *[False] * (len(conditions.mask) - 4)]
    step = policy.planner.step_dt
    np.testing.assert_allclose(conditions.values[1:4, column], (TICK / step + np.arange(1, 4)) / 15)


def test_a_place_on_the_ground_that_is_taken_meanwhile_is_chosen_again(policy):
    policy.set_goal(StackingGoal.parse('relations', ['red on green']), stacked((2, 1)))
    policy.act(stacked((2, 1)), 0.0)

    def place():
        end = policy.planner.end()
        return cartesian(np.array([end['moved.azimuth'], end['moved.radius'], end['moved.z']]))[:2]

    chosen = place()
    policy.act(stacked((2, 1)), TICK)
    assert np.allclose(place(), chosen)
    taken = stacked((2, 1)) | {'yellow.x': chosen[0], 'yellow.y': chosen[1]}
    assert policy.act(taken, 2 * TICK).subgoal == (2, GROUND)
    assert np.linalg.norm(place() - chosen) > 0.3


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


@pytest.mark.parametrize('moved', range(4))
def test_features_give_the_moved_block_first(moved):
    state = np.random.default_rng(0).uniform(-1, 1, 39)
    state[:7] = inverse_kinematics(0.4, 0.55, 0.2)
    named = dict(zip(CHANNELS, state))
    by_name = dict(zip(FEATURES, features(state, moved)))
    assert [by_name[name] for name in TIP] == pytest.approx([0.4, 0.55, 0.2])
    assert by_name['moved.attached'] == named[f'{BLOCKS[moved]}.attached']
    assert slots(moved)[0] == moved and sorted(slots(moved)) == [0, 1, 2, 3]
    for block, slot in zip(slots(moved), ('moved', 'first', 'second', 'third')):
        x, y = named[f'{BLOCKS[block]}.x'], named[f'{BLOCKS[block]}.y']
        assert by_name[f'{slot}.radius'] == pytest.approx(np.hypot(x, y))
        assert by_name[f'{slot}.azimuth'] == pytest.approx(np.arctan2(y, x))
        assert by_name[f'{slot}.z'] == named[f'{BLOCKS[block]}.z']
    both = features(np.stack([state, state]), np.array([moved, 0]))
    np.testing.assert_array_equal(both, [features(state, moved), features(state, 0)])


def test_a_plan_for_people_has_joints_and_blocks_by_name():
    state = np.zeros(39)
    state[:7] = inverse_kinematics(0.4, 0.55, 0.2)
    state[7:] = np.column_stack([LAYOUT, np.full(4, 0.03), np.zeros((4, 4)), [0, 0, 1, 0]]).ravel()
    plan = named_plan(Plan(np.stack([features(state, 2)] * 3), Channels(FEATURES, UNITS), 1.5, 0.1, {'a': 'b'}), 2)
    assert plan.t0 == 1.5 and plan.step_dt == 0.1 and plan.provenance == {'a': 'b'}
    last = dict(zip(plan.channels.names, plan.values[-1]))
    for name in (*JOINT_NAMES, *(f'{block}.{field}' for block in BLOCKS for field in ('x', 'y', 'z', 'attached'))):
        assert last[name] == pytest.approx(dict(zip(CHANNELS, state))[name], abs=1e-9)


def test_an_observation_that_lacks_a_channel_is_refused_by_name(policy):
    values = observation()
    del values['green.y']
    with pytest.raises(KeyError, match='lacks channel green.y'):
        policy.act(values, 0.0)


@pytest.mark.parametrize('late', [0.0, 0.3, 0.999, 1.0, 1.001, 1.5, 2.0])
def test_the_gripper_closes_once_whichever_plan_is_followed(late):
    """Plans made a tick apart from the same ramp of contact, each followed `late` ticks after it was made: on a real robot ticks
    fall between the rows as they like, and a gripper that opens again flings the block away."""
    def motion(made):
        times = made + np.arange(16) / 12
        values = np.zeros((16, 2))
        values[:, 1] = np.clip((times - 0.4) / 0.3, 0.0, 1.0)
        plan = Plan(values, Channels(('tip', 'contact'), ('m', '1')), made, 1 / 12, {})
        return StackingMotion(plan, plan, np.zeros(7), False, False, (0, 1), np.array([0, 0, 0]), 1, TICK, 4)

    closed = [motion(n * TICK).decide({}, (n + late) * TICK).gripper[0] for n in range(24)]
    assert closed == sorted(closed) and closed[0] is not True and closed[-1]
    when = next(n for n, shut in enumerate(closed) if shut)
    assert abs((when + late + 2) * TICK - 0.55) <= TICK, 'when the ramp passes one half, a tick ahead'

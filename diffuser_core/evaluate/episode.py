"""One seeded episode of block stacking, in lock-step and without ROS."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from diffuser_core.envs.kuka_kinematics import JOINT_LOWER, JOINT_UPPER
from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking import CHANNELS
from diffuser_core.envs.stacking_tasks import draw_task
from diffuser_core.evaluate.baselines.policies import EpisodePolicy
from diffuser_core.evaluate.displacement import Displacement
from diffuser_core.evaluate.recording import EpisodeLog
from diffuser_core.evaluate.records import EpisodeWatch

__all__ = ['run_episode']


def run_episode(policy: EpisodePolicy, env: KukaStackEnv, task: str, seed: int, *, displace: float = 0.0,
                log: EpisodeLog | None = None) -> dict[str, Any]:
    """Run an evaluation task to the environment's time limit and return its record (`evaluate.records`).

    displace  distance by which a block is displaced in the middle third of the episode [m]; 0: none is
    log       takes in every state, if given

    The same arguments give the same record, latencies aside. ValueError for an unknown task.
    """
    drawn = draw_task(task, seed)
    observation, info = env.reset(seed=seed, options=drawn.reset)
    policy.reset(seed)
    policy.set_goal(drawn.goal, dict(zip(CHANNELS, observation)))
    watch = EpisodeWatch(drawn, seed, env.relations())
    displacement = Displacement(displace, drawn.goal, seed, env.episode_steps) if displace > 0.0 else None
    reached_at, latencies = None, []
    done = False
    tick = 0
    while not done:
        if displacement is not None and displacement.happens(env, observation, tick):
            observation = env.observe()
        if log is not None:
            log.add_state(tick * policy.tick_dt, observation)
        began = time.perf_counter()
        decision = policy.act(dict(zip(CHANNELS, observation)), tick * policy.tick_dt)
        if decision.plan is not None:
            latencies.append(1e3 * (time.perf_counter() - began))
        if decision.reached and reached_at is None:
            reached_at = tick
        closed = bool(decision.gripper[0])
        watch.command(closed)
        action = np.append(np.clip(decision.joints[0], JOINT_LOWER, JOINT_UPPER), float(closed))
        observation, _, _, done, info = env.step(action)
        watch.see(env.relations(), info['held'])
        tick += 1
    if log is not None:
        log.add_state(tick * policy.tick_dt, observation)
    return watch.record(legacy_score=info['legacy_score'], reached_at=reached_at, ticks=tick, replans=policy.replans,
                        late_ticks=0, latencies=latencies, displaced=None if displacement is None else displacement.done)

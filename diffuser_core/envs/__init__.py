"""Environments. Importing this package registers them with Gymnasium and loads no simulator."""

import gymnasium

KUKA_STACK_ID = "diffuser/KukaStack-v0"

if KUKA_STACK_ID not in gymnasium.registry:
    gymnasium.register(id=KUKA_STACK_ID, entry_point="diffuser_core.envs.kuka_stack:KukaStackEnv")

__all__ = ["KUKA_STACK_ID"]

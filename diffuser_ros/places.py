"""Starting to plan somewhere, beside whatever runs already: in the tick, in a thread or in a process."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Protocol

from diffuser_core.latency import Injected
from diffuser_ros.inference import UNKNOWN, Beside, Inference, Inline, Late, PlanningError, Ready, Session
from diffuser_ros.inference_process import PlanningProcess
from diffuser_ros.parameters import PlannerParameters

__all__ = ['Starting', 'inference_of', 'start', 'with_checkpoint']


class Starting(Protocol):
    """Planning that is being made ready.

    poll   the inference once it is ready, None before; PlanningError, one sentence, if it fails
    wait   until it is ready
    close  give it up; harmless once it was ready
    """

    def poll(self) -> Inference | None: ...
    def wait(self) -> Inference: ...
    def close(self) -> None: ...


def start(settings: PlannerParameters) -> Starting:
    """Begin to make a policy ready where the parameters say."""
    if settings.place == 'process':
        return _InProcess(settings)
    return _Here(settings)


def inference_of(session: Session, settings: PlannerParameters, ready: Ready = UNKNOWN) -> Inference:
    """A session in this process, in the tick or in a thread, as the parameters say."""
    if settings.place != 'inline' and not settings.lock_step:
        return Beside(session, ready, threads=settings.threads)
    injected = Injected(settings.inject_delay, settings.inject_jitter, settings.inject_loss, settings.seed)
    return Late(session, injected, ready) if injected.any else Inline(session, ready)


class _InProcess:
    def __init__(self, settings: PlannerParameters) -> None:
        self._process = PlanningProcess(settings.session, wait=False)
        self._given_away = False

    def poll(self) -> Inference | None:
        try:
            ready = self._process.can_plan()
        except PlanningError:
            self.close()
            raise
        if not ready:
            return None
        self._given_away = True
        return self._process

    def wait(self) -> Inference:
        try:
            self._process.wait_ready()
        except BaseException:
            self.close()
            raise
        self._given_away = True
        return self._process

    def close(self) -> None:
        if not self._given_away:
            self._process.close()


class _Here:
    """Made in a thread of this process."""

    def __init__(self, settings: PlannerParameters) -> None:
        self._settings = settings
        self._made: Inference | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name='load', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        from diffuser_core.envs.policies import PolicyError
        from diffuser_ros.sessions import make_session  # loads torch
        from diffuser_ros.validator import ValidatorError

        try:
            session, ready = make_session(self._settings.session)
        except (PolicyError, ValidatorError) as error:
            self._error = PlanningError(str(error))
        except Exception as error:  # whatever it is, the planner in use must stay in use
            self._error = PlanningError(f'the policy cannot be made: {error}')
        else:
            self._made = inference_of(session, self._settings, ready)

    def poll(self) -> Inference | None:
        if self._thread.is_alive():
            return None
        if self._error is not None:
            raise self._error
        import torch

        torch.set_num_threads(self._settings.threads)  # counts for the thread that calls it: planning inline is in this one
        return self._made

    def wait(self) -> Inference:
        self._thread.join()
        made = self.poll()
        assert made is not None
        return made

    def close(self) -> None:
        """The thread ends by itself."""


def with_checkpoint(settings: PlannerParameters, robot: str, checkpoint: str) -> PlannerParameters:
    """The same parameters with another checkpoint for the same robot."""
    return replace(settings, robot=robot, checkpoint=checkpoint)

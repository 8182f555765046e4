"""What the planner node tells people about itself: counts, latencies, and the message on /diagnostics."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from diffuser_msgs.msg import PlannerStats
from std_msgs.msg import Header

__all__ = ['REASONS', 'Statistics', 'diagnostic_array']

REASONS = {getattr(PlannerStats, name): name for name in (
    'OK', 'NO_GOAL', 'NO_STATE', 'STALE_STATE', 'BAD_STATE', 'HOLD_REQUESTED', 'PLAN_FAILED', 'GOAL_REACHED',
    'PLAN_LATE', 'NO_PLAN', 'PLANNER_DIED', 'PLAN_REFUSED', 'UNSAFE_COMMAND', 'IMPLAUSIBLE_STATE', 'CLOCK_JUMPED')}
"""Name of every reason code of PlannerStats."""
_LEVELS = dict.fromkeys(REASONS, DiagnosticStatus.OK) | {
    PlannerStats.NO_STATE: DiagnosticStatus.WARN, PlannerStats.HOLD_REQUESTED: DiagnosticStatus.WARN,
    PlannerStats.STALE_STATE: DiagnosticStatus.ERROR, PlannerStats.BAD_STATE: DiagnosticStatus.ERROR,
    PlannerStats.PLAN_FAILED: DiagnosticStatus.ERROR, PlannerStats.PLAN_LATE: DiagnosticStatus.WARN,
    PlannerStats.NO_PLAN: DiagnosticStatus.WARN, PlannerStats.PLANNER_DIED: DiagnosticStatus.ERROR,
    PlannerStats.PLAN_REFUSED: DiagnosticStatus.ERROR, PlannerStats.UNSAFE_COMMAND: DiagnosticStatus.ERROR,
    PlannerStats.IMPLAUSIBLE_STATE: DiagnosticStatus.ERROR, PlannerStats.CLOCK_JUMPED: DiagnosticStatus.ERROR}


@dataclass
class Statistics:
    """Counts since the last reset, and the latencies [ms] of the newest plans: from the state in to the command out."""

    ticks: int = 0
    late: int = 0
    clamped: int = 0
    clamped_text: str = ''
    refused: int = 0
    replans: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=4096))

    def latency(self, percent: float) -> float:
        """A percentile of the latencies [ms], 0 if there are none yet."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else 0.0

    def summary(self) -> str:
        """Everything in one line."""
        return (f'{self.ticks} ticks, {self.replans} replans, {self.late} late, {self.clamped} values clamped, latency p50 '
                f'{self.latency(50):.1f} ms, p99 {self.latency(99):.1f} ms')


def diagnostic_array(name: str, stamp: Time, stats: PlannerStats, statistics: Statistics, *,
                     active: bool, trouble: str = '') -> DiagnosticArray:
    """The newest tick's `stats` and the `statistics` so far as the status of the component `name`, which ticks if `active`.
    `trouble`: what is wrong beside the ticks."""
    values = {'reason': REASONS[stats.reason], 'goal': stats.goal_id, 'ticks': statistics.ticks,
              'replans': stats.replans, 'late ticks': statistics.late, 'clamped values': statistics.clamped,
              'latency p50 [ms]': f'{statistics.latency(50):.1f}', 'latency p99 [ms]': f'{statistics.latency(99):.1f}',
              'state age [ms]': f'{stats.state_age_ms:.1f}', 'denoising steps': stats.denoising_steps}
    level, message = (_LEVELS[stats.reason], stats.reason_text) if active else (DiagnosticStatus.WARN, 'inactive')
    if trouble:
        level, message = DiagnosticStatus.ERROR, '; '.join(filter(None, (message, trouble)))
    status = DiagnosticStatus(level=level, name=name, message=message,
                              values=[KeyValue(key=k, value=str(v)) for k, v in values.items()])
    return DiagnosticArray(header=Header(stamp=stamp), status=[status])

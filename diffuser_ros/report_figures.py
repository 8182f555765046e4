"""The pictures of a report: how late commands were, why the robot was held, and how what was done agrees with what was meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from diffuser_ros.message_definition import message_definition
from diffuser_ros.report_data import Drive, Trace
from diffuser_ros.run_reader import STATS_TYPE, Stats

__all__ = ['drawn_channels', 'fresh_latencies', 'latency_figure', 'plan_error', 'reason_names', 'tracking_error',
           'tracking_figure']

MEASURED, PLANNED, COMMANDED, LIMIT = '#1f2933', '#4c9be8', '#e8954c', '#d62a26'
PANELS = 8
"""Channels drawn at most: those that are commanded, then those that are planned, then others."""
SPAN = 0.02
"""Least height of a channel's panel, in its unit: less would make mountains of rounding."""
OFF_PICTURE = 1e12
"""Numbers beyond this, and those that are not finite, are left out of pictures and errors: an axis cannot hold them."""


def reason_names() -> dict[int, str]:
    """Name of every reason code of PlannerStats."""
    return {int(code): name for name, code in re.findall(r'^uint8 (\w+)=(\d+)', message_definition(STATS_TYPE), re.MULTILINE)}


def drawable(values: ArrayLike) -> NDArray[np.float64]:
    """Numbers with NaN in place of what no axis can hold."""
    numbers = np.asarray(values, dtype=np.float64)
    return np.where(np.abs(numbers) < OFF_PICTURE, numbers, np.nan)


def fresh_latencies(stats: Sequence[Stats]) -> NDArray[np.float64]:
    """Latencies [ms] of the ticks that sent a fresh command; the others say 0."""
    latencies = drawable([s.latency_ms for s in stats])
    return latencies[latencies > 0.0]


# ---- Latency -------------------------------------------------------------------------------------------------------------


def latency_figure(drive: Drive) -> Figure:
    """Latency over time and its histogram, with p50, p99 and the period; the plan's age; the reasons, over time."""
    stats = drive.stats
    times = 1e-9 * (np.array([s.stamp for s in stats]) - stats[0].stamp)
    figure = Figure(figsize=(13.0, 10.0), layout='constrained')
    axes = figure.subplot_mosaic([['latency', 'histogram'], ['age', 'age'], ['reason', 'reason']],
                                 gridspec_kw={'width_ratios': [2.0, 1.0], 'height_ratios': [1.4, 1.0, 0.8]})
    latencies = drawable([s.latency_ms for s in stats])
    fresh = fresh_latencies(stats)
    axes['latency'].plot(times, np.where(latencies > 0.0, latencies, np.nan), '.', color=MEASURED, markersize=3)
    axes['latency'].set_title('latency, from the state in to the command out', fontsize=10, loc='left')
    axes['latency'].set_ylabel('ms')
    if len(fresh):
        axes['histogram'].hist(fresh, bins=50, orientation='horizontal', color=PLANNED)
        for percent, style in ((50, '-'), (99, '--')):
            value = float(np.percentile(fresh, percent))
            axes['histogram'].axhline(value, color=MEASURED, linestyle=style, label=f'p{percent} {value:.1f} ms')
    if drive.period is not None:
        for panel in (axes['latency'], axes['histogram']):
            panel.axhline(1e3 * drive.period, color=LIMIT, linewidth=1.0, label=f'period {1e3 * drive.period:.1f} ms')
    if axes['histogram'].get_legend_handles_labels()[0]:
        axes['histogram'].legend(fontsize=8)
    axes['histogram'].set_title(f'{len(fresh)} of {len(stats)} ticks sent a fresh command', fontsize=10, loc='left')
    axes['histogram'].set_xlabel('ticks')
    axes['histogram'].sharey(axes['latency'])
    axes['age'].plot(times, drawable([s.plan_age_ms for s in stats]), color=MEASURED, linewidth=1.0, label='of the plan followed')
    axes['age'].plot(times, drawable([s.state_age_ms for s in stats]), color=PLANNED, linewidth=1.0, label='of the state')
    axes['age'].plot(times, drawable([s.planning_ms for s in stats]), color=COMMANDED, linewidth=1.0, label='planning took')
    axes['age'].legend(fontsize=8, frameon=False, ncols=3)
    axes['age'].set_title('ages when the tick decided', fontsize=10, loc='left')
    axes['age'].set_ylabel('ms')
    _draw_reasons(axes['reason'], times, stats)
    for panel in axes.values():
        panel.grid(alpha=0.25)
    figure.suptitle(f'{drive.name}: {len(stats)} ticks')
    return figure


def _draw_reasons(panel: Any, times: NDArray[np.float64], stats: Sequence[Stats]) -> None:
    names, codes = reason_names(), [s.reason for s in stats]
    found = sorted(set(codes))
    panel.plot(times, [found.index(code) for code in codes], '|', color=MEASURED, markersize=9)
    panel.set_yticks(range(len(found)), [f'{names.get(code, code)} ({codes.count(code)})' for code in found], fontsize=8)
    panel.set_ylim(len(found) - 0.5, -0.5)
    panel.set_title('what each tick did, and how many', fontsize=10, loc='left')
    panel.set_xlabel('time since the first tick [s]')


# ---- Tracking ------------------------------------------------------------------------------------------------------------


def drawn_channels(drive: Drive) -> list[str]:
    """The channels whose tracking is drawn, at most PANELS."""
    planned = drive.plans[0].names if drive.plans else []
    wanted = [*(n for n in drive.commanded.names if n in drive.measured), *(n for n in planned if n in drive.measured)]
    return list(dict.fromkeys(wanted or drive.measured.names))[:PANELS]


def tracking_error(drive: Drive, channel: str) -> dict[str, float] | None:
    """Root mean square and largest distance of what was measured from what was commanded for then; None if not both are known."""
    if channel not in drive.commanded or channel not in drive.measured:
        return None
    times, commanded = drive.commanded[channel]
    return _distance(commanded, times, *drive.measured[channel])


def plan_error(drive: Drive, channel: str) -> dict[str, float] | None:
    """As `tracking_error`, from the plans, each for the second after its beginning; None if there is no plan of it."""
    errors = []
    for plan in drive.plans:
        if channel in plan and channel in drive.measured:
            times, planned = plan[channel]
            measured_at, measured = drive.measured[channel]
            within = (measured_at >= times[0]) & (measured_at <= min(times[-1], times[0] + 1.0))
            errors.append(drawable(measured[within]) - np.interp(measured_at[within], times, drawable(planned)))
    return _size(np.concatenate(errors)) if errors else None


def _distance(wanted: NDArray[np.float64], times: NDArray[np.float64], measured_at: NDArray[np.float64],
              measured: NDArray[np.float64]) -> dict[str, float] | None:
    within = (times >= measured_at[0]) & (times <= measured_at[-1])
    return _size(np.interp(times[within], measured_at, drawable(measured)) - drawable(wanted[within]))


def _size(errors: NDArray[np.float64]) -> dict[str, float] | None:
    found = errors[np.isfinite(errors)]
    return {'rms': float(np.sqrt(np.mean(found**2))), 'max': float(np.abs(found).max())} if len(found) else None


def tracking_figure(drive: Drive) -> Figure:
    """What was measured, commanded and planned: by channels, from above where there is a place x, y, and other commands."""
    channels = drawn_channels(drive)
    panels: list[str] = [*channels]
    others = [name for name in drive.commanded.names if name not in drive.measured]
    from_above = {'x', 'y'} <= set(drive.measured.names)
    panels += ['from above'] * from_above + ['commands'] * bool(others)
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(13.0, 2.6 * rows + 1.0 + 2.4 * from_above), layout='constrained')
    axes = dict(zip(panels, figure.subplots(rows, 2, squeeze=False).ravel()))
    for spare in figure.axes[len(panels):]:
        spare.remove()
    start = min(drive.measured[channel][0][0] for channel in channels)
    for channel in channels:
        panel = axes[channel]
        for plan in drive.plans:
            _draw(panel, plan, channel, start, color=PLANNED, linewidth=0.8, alpha=0.6)
        _draw(panel, drive.measured, channel, start, color=MEASURED, linewidth=1.6)
        _draw(panel, drive.commanded, channel, start, color=COMMANDED, linewidth=1.0, linestyle='--')
        panel.set_title(channel, fontsize=10, loc='left')
        low, high = panel.get_ylim()
        if high - low < SPAN:
            panel.set_ylim((low + high - SPAN) / 2, (low + high + SPAN) / 2)
    if from_above:
        _draw_from_above(axes['from above'], drive)
    if others:
        for name in others[:PANELS]:
            _draw(axes['commands'], drive.commanded, name, start, linewidth=1.0, label=name)
        axes['commands'].legend(fontsize=8, frameon=False)
        axes['commands'].set_title('commands', fontsize=10, loc='left')
    for panel in axes.values():
        panel.grid(alpha=0.25)
    figure.suptitle(f'{drive.name}: dark as measured, dashed as commanded, thin {len(drive.plans)} plans; time [s]', fontsize=11)
    return figure


def _draw(panel: Any, trace: Trace, channel: str, start: float, **style: Any) -> None:
    """A line of a channel over time, if there is such a channel."""
    if channel in trace:
        times, values = trace[channel]
        panel.plot(drawable(times - start), drawable(values), **style)


def _draw_from_above(panel: Any, drive: Drive) -> None:
    for plan in drive.plans:
        if 'x' in plan and 'y' in plan:
            panel.plot(drawable(plan['x'][1]), drawable(plan['y'][1]), color=PLANNED, linewidth=0.8, alpha=0.6)
    (times, x), (_, y) = drive.measured['x'], drive.measured['y']
    if len(times) == len(y):
        panel.plot(drawable(x), drawable(y), color=MEASURED, linewidth=1.6)
    panel.set_aspect('equal', adjustable='datalim')
    panel.set_title('from above: y over x', fontsize=10, loc='left')

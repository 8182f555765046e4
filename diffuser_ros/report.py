"""Pictures and a summary of a run, from a run log or a ROS 2 bag: latency, plan age, reasons, tracking."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from diffuser_core import __version__
from diffuser_core.evaluate.recording import replacing, write_json
from diffuser_core.evaluate.statistics import quantiles
from diffuser_ros.report_data import Drive, read_drive
from diffuser_ros.report_figures import (
    drawable,
    drawn_channels,
    fresh_latencies,
    latency_figure,
    plan_error,
    reason_names,
    tracking_error,
    tracking_figure,
)
from diffuser_ros.run_reader import RunLogError

__all__ = ['main', 'report', 'summary']

LATENCY, TRACKING, SUMMARY = 'latency.png', 'tracking.png', 'summary.json'


def summary(drive: Drive, command: str) -> dict[str, Any]:
    """What the pictures show, in numbers."""
    stats = drive.stats
    names = reason_names()
    last = stats[-1] if stats else None
    channels = drawn_channels(drive)
    ages = drawable([s.plan_age_ms for s in stats])
    return {
        'command': command, 'version': __version__, 'seed_start': drive.seed, 'episodes': 1, 'device': drive.backend,
        'wall_s': 1e-9 * (stats[-1].stamp - stats[0].stamp) if stats else None, 'complete': drive.complete,
        'period_ms': None if drive.period is None else 1e3 * drive.period, 'ticks': len(stats),
        'replans': last.replans if last else None, 'late_ticks': last.late_ticks if last else None,
        'clamped': last.clamped if last else None, 'latency_ms': quantiles(fresh_latencies(stats).tolist(), 3),
        'plan_age_ms': quantiles(ages[ages > 0.0].tolist(), 3),
        'reasons': {names.get(code, str(code)): count for code, count in sorted(Counter(s.reason for s in stats).items())},
        'tracking': {channel: tracking_error(drive, channel) for channel in channels},
        'plans': {channel: plan_error(drive, channel) for channel in channels}}


def report(path: Path, out: Path, *, node: str | None = None, command: str = '') -> dict[str, Any]:
    """Write the pictures and summary.json of a log or bag to `out`; the summary. RunLogError if there is nothing to draw."""
    drive = read_drive(path, node)
    figures: dict[str, Figure] = {}
    if drive.stats:
        figures[LATENCY] = latency_figure(drive)
    if drive.measured.names:
        figures[TRACKING] = tracking_figure(drive)
    if not figures:
        raise RunLogError(f'{path} holds neither statistics nor observations: there is nothing to draw')
    result = {**summary(drive, command), 'pictures': list(figures)}
    try:
        for name, figure in figures.items():
            with replacing(out / name) as fresh:
                figure.savefig(fresh, dpi=100)
        write_json(out / SUMMARY, result)
    except OSError as error:
        raise RunLogError(f'the report cannot be written to {out}: {error.strerror}') from error
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Draw a report; the exit code is 1, after one sentence, if there is nothing to draw it from."""
    arguments = list(sys.argv[1:] if args is None else args)
    if '--ros-args' in arguments:
        arguments = arguments[:arguments.index('--ros-args')]
    parser = argparse.ArgumentParser(prog='report', description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('log', type=Path, help='a run log (.mcap), or the folder of a bag')
    parser.add_argument('--out', type=Path, default=None, help='default: runs/report/<name of the log>')
    parser.add_argument('--node', default=None, help='of a bag with several planners, the one to look at: /arm/diffuser_planner')
    options = parser.parse_args(arguments)
    out = options.out or Path('runs/report') / (options.log.stem or options.log.resolve().name)
    try:
        result = report(options.log, out, node=options.node, command=shlex.join(['report', *arguments]))
    except RunLogError as error:
        print(f'report: {error}', file=sys.stderr)
        return 1
    latency = result['latency_ms']
    told = 'no fresh command' if latency['p50'] is None else f'latency p50 {latency["p50"]:.1f} ms, p99 {latency["p99"]:.1f} ms'
    cut = '' if result['complete'] else ' (cut off: its complete part)'
    print(f'{result["ticks"]} ticks{cut}, {told}, ' + ', '.join(f'{name} {count}' for name, count in result['reasons'].items()))
    for name in (*result['pictures'], SUMMARY):
        print(out / name)
    return 0

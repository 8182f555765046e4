"""A folder of results that an interrupted run, or a later one of more episodes, goes on with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffuser_core.evaluate.recording import write_json

__all__ = ['Job', 'ResultsFolder']

Job = tuple[str, int]
"""Task and seed of an episode."""


class ResultsFolder:
    """`settings.json`, `episodes.jsonl` (one record a line, appended as episodes end) and `summary.json` in one folder.

    records   what has been run so far, by task and seed
    settings  what all of it was run with

    ValueError if the folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._lines = folder / 'episodes.jsonl'
        path = folder / 'settings.json'
        if path.exists():
            found = json.loads(path.read_text(encoding='utf-8'))
            differing = [name for name in {**settings, **found} if found.get(name) != settings.get(name)]
            if differing:
                raise ValueError(f'{folder} holds results of other settings ({", ".join(differing)}); give another folder')
        elif self._lines.exists():
            raise ValueError(f'{folder} holds results of unknown settings; give another folder')
        else:
            write_json(path, settings)
        self.records: dict[Job, dict[str, Any]] = {(record['task'], record['seed']): record for record in self._read()}

    def _read(self) -> list[dict[str, Any]]:
        """The records; the beginning of a line that was never finished is taken away."""
        text = self._lines.read_text(encoding='utf-8') if self._lines.exists() else ''
        whole = text[:text.rfind('\n') + 1]
        if whole != text:
            self._lines.write_text(whole, encoding='utf-8')
        return [json.loads(line) for line in whole.splitlines()]

    def missing(self, wanted: Sequence[Job]) -> list[Job]:
        """Those of the wanted episodes that have not been run."""
        return [job for job in wanted if job not in self.records]

    def take(self, records: Iterable[dict[str, Any]], wanted: Sequence[Job]) -> None:
        """Keep the records of missing episodes as they end, with a progress bar over all that are wanted."""
        with tqdm(total=len(wanted), initial=len(wanted) - len(self.missing(wanted)), unit='episode') as bar:
            for record in records:
                self.add(record)
                bar.update()

    def add(self, record: dict[str, Any]) -> None:
        """Keep the record of an episode that has just ended."""
        with open(self._lines, 'a', encoding='utf-8') as lines:
            lines.write(json.dumps(record) + '\n')
        self.records[record['task'], record['seed']] = record

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, in one step."""
        write_json(self.folder / 'summary.json', summary)

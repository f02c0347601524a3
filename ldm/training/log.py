"""The log of a training: one JSON object a logged step."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_shards import durable

LOGGER = logging.getLogger("retinaforge")


class MetricLog:
    """metrics.jsonl: one JSON object a logged step. Rows after the checkpoint that a run resumes from are cut off."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self.path, self.writes, self._rows, self.behind = path, writes, [], False

    def exists(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0

    def add(self, samples: int, row: dict[str, float]) -> None:
        self._rows.append(json.dumps({"samples": samples, **{k: v if math.isfinite(v) else None for k, v in row.items()}}))
        self.flush()

    def flush(self) -> None:
        """Append the rows; what a full disk does not take is kept for the next time, and no torn line stays."""
        if not (self.writes and self._rows):
            self._rows = []
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = ("\n".join(self._rows) + "\n").encode()
        with open(self.path, "ab", buffering=0) as file:
            size, why = file.tell(), "no space left on device"
            try:
                written = file.write(content)  # unbuffered: a full disk may take a part, and say so by the count alone
            except OSError as error:
                written, why = 0, error.strerror
            if written < len(content):
                file.truncate(size)
                if not self.behind:
                    LOGGER.warning("%s: %s; the rows are kept and written later", self.path, why)
                self.behind = True
                return
        self._rows, self.behind = [], False

    def cut(self, samples: int) -> None:
        """Drop the rows after `samples`, and a last line that a kill left torn."""
        if self.writes and self.path.exists():
            kept = [line for line, row in self._read() if row["samples"] <= samples]
            durable.write_bytes(self.path, ("\n".join(kept) + "\n" if kept else "").encode())

    def _read(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for line in self.path.read_text().splitlines():
            try:
                yield line, json.loads(line)
            except ValueError:
                return  # torn by a kill; everything before it is whole


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, [] when there is none."""
    return [row for _, row in MetricLog(path, writes=False)._read()] if path.exists() else []

"""What can be set of reading. Loads nothing but this: a configuration is read and checked without torch."""

from __future__ import annotations

from dataclasses import dataclass

from data_shards.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How a stream reads; nothing but `bad_share` can change what a batch holds.

    Attributes:
        threads: readers of this process.
        ahead: batches read before they are asked for.
        check: compare crc32c on every read.
        bad_share: this share of the split's samples may be unreadable to this process. Each is logged and another takes its place,
            the same one in every run; one more ends the run. Reading a split once, as encoding does, takes none.
    """

    threads: int = 2
    ahead: int = 2
    check: bool = True
    bad_share: float = 0.0

    def __post_init__(self) -> None:
        if self.threads < 1 or self.ahead < 0 or not 0 <= self.bad_share <= 1:
            raise InputError(
                f"threads {self.threads}, ahead {self.ahead}, bad_share {self.bad_share}",
                expected="at least one thread, none below 0, a share from 0 to 1",
            )

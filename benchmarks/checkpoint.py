"""A background checkpoint: how long it stops a training, and what memory it takes.

A state of many float32 tensors. `stall_vs_copy` is the time of a bare copy of it into memory that is there already, over the time for which
`begin` holds the training up: 1 is the floor. `memory_over_state` is the state's size over the peak of what writing it adds to the memory
of the process; `other` is the state in MiB. `beside_it_vs_alone` is how fast a loop of Python and small products runs while the writer
writes, over the same loop alone: 1 means that training does not notice. Equal means: what was read back is what was written.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from rounds import arguments, finish, resident_mib

from ldm.checkpoints.store import CheckpointStore, Reader
from ldm.comm import Alone

MIB = 1 << 20


def turns(until_s: float) -> float:
    """Small steps a second, as many as fit into so long."""
    x, done, began = torch.randn(64, 64), 0, time.perf_counter()
    while (took := time.perf_counter() - began) < until_s:
        x = torch.tanh(x @ x.T / 64)
        done += 1
    return done / took


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    args = arguments(__doc__)
    torch.set_num_threads(1)
    tensors = {f"layer.{i}": torch.randn(1024, 1024) for i in range(96 if args.quick else 512)}
    state_mib = sum(t.numel() * 4 for t in tensors.values()) / MIB
    target = {name: value.clone() for name, value in tensors.items()}
    stalls, copies, beside, alone = [], [], [], []
    with tempfile.TemporaryDirectory() as place:
        store = CheckpointStore(Path(place) / "checkpoints", Alone())
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident_mib("VmRSS")
        for turn in range(args.rounds + 1):
            copy_s = seconds(lambda: [target[name].copy_(value) for name, value in tensors.items()])
            stall_s = seconds(lambda n=turn: store.begin(n + 1, {}, tensors))
            pace = []
            while store.writing:
                pace.append(turns(0.2))
            folder = store.finish()
            if turn:
                stalls, copies, beside = [*stalls, stall_s], [*copies, copy_s], beside + pace
                alone += [turns(0.2) for _ in pace]
        added = resident_mib("VmHWM") - before
        read = Reader(store.newest(progress_exists=True))
        equal = all(torch.equal(read(name), value) for name, value in tensors.items())
        assert folder == store.folder_at(args.rounds + 1)
    rows = [
        row("stall_vs_copy", statistics.median(stalls), statistics.median(copies), "s", equal, cost=True),
        row("memory_over_state", added, state_mib, "MiB", equal, cost=True),
        row("beside_it_vs_alone", statistics.median(beside), statistics.median(alone), "steps/s", equal, cost=False),
    ]
    finish("checkpoint", rows)


def row(case: str, ours: float, other: float, unit: str, equal: bool, *, cost: bool) -> dict[str, object]:
    """`cost`: less is better."""
    ratio = other / ours if cost else ours / other
    print(f"{case:24} ours {ours:10.3f} {unit}   other {other:10.3f} {unit}   ratio {ratio:6.2f}   equal {equal}", flush=True)
    return {"case": case, "ours": ours, "other": other, "unit": unit, "ratio": ratio, "cpu_ratio": None, "equal": equal}


if __name__ == "__main__":
    main()

"""Operations are counted as the definition says, and a trace can be read."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ldm.speed import Clock
from ldm.training.clock import Work, traced


def test_operations_of_forward_and_backward_are_counted_and_again_when_a_part_joins() -> None:
    work, net, x = Work(torch.device("cpu"), torch.float32), torch.nn.Linear(30, 20, bias=False), torch.randn(8, 30)
    for parts, loss in ((["a"], lambda y: y.sum()), (["a"], lambda y: y.sum()), (["a", "b"], lambda y: (y @ y.T).sum())):
        with work.counted(8):
            loss(net(x)).backward()
        work.trained(set(parts))
    # forward x·W and the gradient of W: 2·8·30·20 each; a part that joins is seen at its first step, counted at its second
    assert work.per_sample == 2 * 2 * 30 * 20
    with work.counted(8):
        y = net(x)
        (y @ y.T).sum().backward()
    assert work.per_sample == (2 * 2 * 8 * 30 * 20 + 3 * 2 * 8 * 8 * 20) / 8
    row = work.row(10.0, world=2)
    assert row["speed/model_flops_per_s"] == 10 * work.per_sample
    assert 0 < row["speed/utilisation"] == row["speed/model_flops_per_s"] / (2 * work.peak)


def test_a_loss_may_take_gradients_of_its_own_while_it_is_counted() -> None:
    work, net = Work(torch.device("cpu"), torch.float32), torch.nn.Linear(3, 3)
    leaf = torch.randn(2, 3, requires_grad=True)
    with work.counted(2):
        (gradient,) = torch.autograd.grad(net(leaf).sum(), leaf)
        (net(leaf) * gradient).sum().backward()
    assert work.per_sample > 0


def test_the_time_of_the_phases_is_within_the_whole() -> None:
    clock = Clock(torch.device("cpu"))
    for phase in ("forward", "backward", "forward"):
        with clock(phase):
            sum(range(20000))
    row = clock.row(4)
    assert row["samples_per_s"] > 0 and 0 < row["time/backward"] < row["time/forward"] + row["time/backward"] <= 1
    assert clock.row(0)["samples_per_s"] == 0 and not clock.seconds()


def test_a_trace_is_written_of_some_steps(tmp_path: Path) -> None:
    with traced(tmp_path / "made" / "trace.json") as stepped:
        for _ in range(8):
            torch.ones(4) + 1
            stepped()
    events = json.loads((tmp_path / "made" / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::add" for event in events) == 3

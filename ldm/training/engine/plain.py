"""A trained network in one process, or replicated under DistributedDataParallel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ldm.checkpoints.store import Reader, State

MOMENTS = ("exp_avg", "exp_avg_sq")


class PlainNetwork:
    """The module, what it is wrapped in, its optimizer, and a loss scale where gradients are fp16.

    Optimizer states stand from the beginning, at zero, so that a checkpoint always holds the same names.
    """

    def __init__(self, module: nn.Module, wrapped: nn.Module, optimizer: torch.optim.Optimizer, *, clip: float, fp16: bool) -> None:
        self.module, self.wrapped, self.optimizer, self.clip = module, wrapped, optimizer, clip
        self.scaler = torch.amp.GradScaler(next(module.parameters()).device.type, enabled=fp16)
        self.live = False  # a loss was given since the last step
        for parameter in module.parameters():
            optimizer.state[parameter] = fresh_state(parameter)

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Gradients are exchanged at the last micro batch only."""
        held = contextlib.nullcontext() if last or self.wrapped is self.module else self.wrapped.no_sync()
        with held:
            yield

    def backward(self, loss: Tensor) -> None:
        self.live = True
        self.scaler.scale(loss).backward()

    def gradient_norm(self) -> Tensor:
        """Norm of the gradient before clipping, 0 where there is none; clips in place."""
        if not self.live:
            return torch.zeros((), device=next(self.module.parameters()).device)
        self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(self.module.parameters(), self.clip or float("inf"))

    def step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()  # not through the scaler: whether to step is agreed over parts and ranks, and was

    def finish(self) -> None:
        """After every step, taken or not: drop the gradients, let the loss scale grow or shrink."""
        if self.live and self.scaler.is_enabled():
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.live = False

    def masters(self) -> State:
        """The fp32 weights by name, live."""
        return dict(self.module.named_parameters())

    def refresh(self) -> None:
        """Nothing follows from the weights but what is computed with them."""

    def state(self) -> State:
        """Weights, moments, step count and loss scale by name."""
        state: State = {f"model.{k}": v for k, v in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            state |= {f"optimizer.{slot}.{name}": self.optimizer.state[parameter][slot] for slot in MOMENTS}
        state["optimizer.step"] = next(iter(self.optimizer.state.values()))["step"]
        known = self.scaler.state_dict()  # empty without fp16
        return {**state, "optimizer.loss_scale": loss_scale(known.get("scale", 0.0), known.get("_growth_tracker", 0))}

    @torch.no_grad()
    def load(self, read: Reader) -> None:
        """The inverse of `state`."""
        for name, value in self.module.state_dict().items():
            value.copy_(read(f"model.{name}", shape=value.shape))
        for name, parameter in self.module.named_parameters():
            slots = self.optimizer.state[parameter]
            for slot in MOMENTS:
                slots[slot].copy_(read(f"optimizer.{slot}.{name}", shape=parameter.shape))
            slots["step"].copy_(read("optimizer.step", shape=()))
        scale, clean, _ = read("optimizer.loss_scale", shape=(3,)).tolist()
        if self.scaler.is_enabled() and scale:
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(clean)})


def loss_scale(scale: float, clean: int, hysteresis: int = 0) -> Tensor:
    """State of a dynamic loss scale: the scale, 0 where there is none; steps since it last changed; overflows it still forgives."""
    return torch.tensor([scale, clean, hysteresis], dtype=torch.float64)


def fresh_state(values: Tensor) -> dict[str, Tensor]:
    """Adam's state before the first step."""
    return {"step": torch.zeros((), device=values.device), **{slot: torch.zeros_like(values) for slot in MOMENTS}}

"""A trained network under DeepSpeed's ZeRO 1, 2 or 3: where its shards lie, and how a step is left out.

The state of a rank is read and written as fragments: the stretch of each flattened parameter that this rank owns, with the
two moments beside it. Stages and world sizes differ in where the stretches are cut and in nothing else, so a checkpoint of
one can be loaded under any other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ldm.checkpoints.store import Fragment, Reader, State
from ldm.training.engine.plain import MOMENTS, fresh_state, loss_scale


class HeldAdamW(torch.optim.AdamW):
    """AdamW that can be told to leave a step out.

    DeepSpeed decides by itself, engine by engine, whether a gradient overflowed. Here all parts and ranks decide together,
    after the gradients are reduced and before any part steps; what DeepSpeed does around the step, clearing gradients, is
    still done.
    """

    held = False

    def step(self, closure=None):
        return None if self.held else super().step(closure)


class ZeroNetwork:
    """One DeepSpeed engine, driven by the caller's accumulation boundaries."""

    def __init__(self, module: nn.Module, engine, optimizer: HeldAdamW) -> None:
        self.module, self.wrapped, self.inner = module, engine, optimizer
        self.zero = engine.optimizer
        self.stage = engine.zero_optimization_stage()
        self.live = False  # a loss was given since the last step
        self.lr: float | None = None
        for flat in self._flat_masters():
            optimizer.state[flat] = fresh_state(flat)
        if self.stage < 3:
            self.zero._lazy_init_hp_params_optimizer_state()  # links each parameter with its stretch of the states

    def _flat_masters(self) -> list[Tensor]:
        return self.zero.single_partition_of_fp32_groups if self.stage < 3 else self.zero.fp32_partitioned_groups_flat

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Gradients are reduced at the last micro batch (ZeRO-1), or at each, into their partition (ZeRO-2, 3)."""
        self.wrapped.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.live = True
        self.wrapped.backward(loss, scale_wrt_gas=False)  # the caller divides by the accumulation, for every kind of part

    def gradient_norm(self) -> Tensor:
        """Norm of the gradient before clipping, 0 where there is none, inf where a value is not finite; DeepSpeed clips in its step."""
        if not self.live:
            return torch.zeros((), device=self.wrapped.device)
        groups = self.zero._get_norm_groups() if self.stage == 3 else [self.zero.scaled_global_norm()]
        norms = torch.stack([torch.as_tensor(norm, dtype=torch.float32, device=self.wrapped.device) for norm in groups])
        if bool((norms < 0).any()):  # DeepSpeed's sign for infinite or NaN
            return norms.new_tensor(float("inf"))
        return torch.linalg.vector_norm(norms) / self.zero.loss_scale

    def step(self, lr: float) -> None:
        self.lr = lr

    def finish(self) -> None:
        """After every step, taken or not: DeepSpeed updates what `step` allowed and drops the gradients."""
        if not self.live:
            return
        for group in self.wrapped.optimizer.param_groups:
            group["lr"] = self.lr if self.lr is not None else 0.0
        self.inner.held = self.lr is None
        self.wrapped.step()
        self.live, self.lr = False, None

    # --- state --------------------------------------------------------------------------------------------------

    def _stretches(self, slot: str | None = None) -> Iterator[tuple[str, Fragment]]:
        """(name, this rank's stretch of the fp32 weight, or of a moment) for each parameter it holds any of; live."""
        for name, parameter in self.module.named_parameters():
            if self.stage < 3:
                mapping = parameter._hp_mapping
                if mapping is None:
                    continue  # wholly in other ranks' partitions
                values, start, shape = mapping.get_hp_fragment(slot), mapping.lp_fragment_address.start, parameter.shape
            else:
                values, shape = self.zero.get_local_fp32_param(parameter, slot), parameter.ds_shape
                start = values.numel() * self.zero._get_param_partition_rank(parameter)
                values = values[: max(0, shape.numel() - start)]  # the last partition is padded
            if values.numel():
                yield name, Fragment(values.view(-1), start, tuple(shape))

    def masters(self) -> State:
        """This rank's stretches of the fp32 weights by name, live."""
        return dict(self._stretches())

    def state(self) -> State:
        """This rank's stretches of weights and moments; buffers, step count and loss scale, which all ranks share."""
        state: State = {f"model.{name}": stretch for name, stretch in self._stretches()}
        for slot in MOMENTS:
            state |= {f"optimizer.{slot}.{name}": stretch for name, stretch in self._stretches(slot)}
        state |= {f"model.{name}": buffer for name, buffer in self.module.named_buffers()}
        state["optimizer.step"] = self.inner.state[self._flat_masters()[0]]["step"]
        if not self.wrapped.fp16_enabled():
            return {**state, "optimizer.loss_scale": loss_scale(0.0, 0)}
        known = self.zero.loss_scaler
        clean = known.cur_iter - known.last_overflow_iter - 1
        return {**state, "optimizer.loss_scale": loss_scale(known.cur_scale, clean, known.cur_hysteresis)}

    @torch.no_grad()
    def load(self, read: Reader) -> None:
        """The inverse of `state`, whatever stage and world wrote it."""
        for slot, prefix in ((None, "model"), *((slot, f"optimizer.{slot}") for slot in MOMENTS)):
            for name, stretch in self._stretches(slot):
                stop = stretch.start + stretch.values.numel()
                stretch.values.copy_(read(f"{prefix}.{name}", shape=stretch.shape, start=stretch.start, stop=stop))
        for name, buffer in self.module.named_buffers():
            buffer.copy_(read(f"model.{name}", shape=buffer.shape))
        for flat in self._flat_masters():
            self.inner.state[flat]["step"].copy_(read("optimizer.step", shape=()))
        scale, clean, hysteresis = read("optimizer.loss_scale", shape=(3,)).tolist()
        if self.wrapped.fp16_enabled() and scale:
            known = self.zero.loss_scaler
            known.cur_scale, known.cur_iter, known.last_overflow_iter = scale, int(clean), -1
            known.cur_hysteresis = int(hysteresis) or known.cur_hysteresis  # a plain loss scale forgives none, and says 0
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the weights that are computed with in line with the fp32 ones, as DeepSpeed does at the end of a step."""
        if self.stage < 3:
            self.zero.update_lp_params()
            return
        self.zero._partition_all_parameters()
        for i in range(len(self.zero.fp16_groups)):
            self.zero._reassign_or_swap_out_partitioned_parameters(i)
        if persistent := self.zero.persistent_parameters:
            persistent[0].all_gather(persistent)

"""Stock DeepSpeed engines around our networks: each loads what `ckpt convert` wrote, compares, and takes one step.

python -m tests.launch.stock_deepspeed RUN CONVERTED STAGE, one process a rank
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import deepspeed
import deepspeed.ops
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn

from ldm.checkpoints.commit import Checkpoint
from ldm.checkpoints.store import CheckpointStore, Reader
from ldm.comm import Alone
from ldm.models.config import CodebookConfig, PatchGANConfig, VQGANConfig
from ldm.models.denoiser import denoiser_from
from ldm.models.discriminator import PatchGAN
from ldm.models.other_codebooks import codebook_from
from ldm.models.vqgan import VQGAN

Number = Callable[[nn.Module], Tensor]
"""A number out of a network, in which all of its weights have a part."""
SLOTS = ("fp32", "exp_avg", "exp_avg_sq")
State = dict[str, dict[str, Tensor]]
"""By slot and name of the parameter."""


def networks(identity: dict) -> dict[str, tuple[nn.Module, Number]]:
    """Our modules, untrained."""
    draw = torch.Generator().manual_seed(1)
    x_BCHW, z_BDHW = torch.randn(2, 4, 32, 32, generator=draw), torch.randn(2, 4, 8, 8, generator=draw)
    if identity["stage"] == "diffusion":
        t_B = torch.tensor([3.0, 700.0])
        return {"denoiser": (denoiser_from(identity["model"]), lambda net: net(z_BDHW, t_B).square().mean())}
    codebook = codebook_from(CodebookConfig(**identity["codebook"]), channels=4, seed=0)
    discriminator = PatchGAN(PatchGANConfig(**{**identity["discriminator"], "bands": 4}))
    model = {name: value for name, value in identity["model"].items() if name != "kind"}
    return {
        "vqgan": (VQGAN(VQGANConfig(**model)), lambda net: net(x_BCHW, codebook, quantise=False).rec_BCHW.square().mean()),
        "discriminator": (discriminator, lambda net: net(x_BCHW)[0].square().mean()),
    }


def hyperparameters(checkpoint: Checkpoint) -> dict[str, object]:
    """AdamW's, as the run was configured; its rate is constant."""
    told = checkpoint.state["record"]["config"][checkpoint.state["identity"]["stage"]]["optimizer"]
    return {"lr": told["lr"], "betas": (told["beta1"], told["beta2"]), "weight_decay": told["weight_decay"]}


def carry_on(folder: Path, network: str, module: nn.Module, number: Number, checkpoint: Checkpoint, stage: int) -> None:
    """Load; all states are ours bit for bit; after a step with given gradients they are those of torch's AdamW."""
    read, names = Reader(checkpoint), [name for name, _ in module.named_parameters()]
    ours = {slot: {n: read(f"{network}.{'model' if slot == 'fp32' else f'optimizer.{slot}'}.{n}") for n in names} for slot in SLOTS}
    step, rates = read(f"{network}.optimizer.step"), hyperparameters(checkpoint)
    draw = torch.Generator().manual_seed(2)
    given = {name: 1e-2 * torch.randn(value.shape, generator=draw) for name, value in ours["fp32"].items()}
    module.load_state_dict(ours["fp32"])
    expected = number(module).item()

    engine = loaded(folder, network, module, given, stage)
    assert engine.global_steps == engine.lr_scheduler.last_batch_iteration + 1 == int(step)
    assert engine.global_samples == checkpoint.samples
    assert {key: engine.optimizer.param_groups[0][key] for key in rates} == rates
    inner = engine.optimizer.optimizer.state.values()
    assert inner and all(torch.equal(state["step"], step) for state in inner)
    for slot, name, theirs in states(engine, module, names):
        assert torch.equal(theirs, ours[slot][name]), f"{slot} of {network}.{name}"

    loss = number(engine)
    assert abs(loss.item() - expected) <= 1e-5 * abs(expected), "the weights that are computed with are not the fp32 ones"
    engine.backward(loss)
    engine.step()
    after = stepped(ours, step, given, rates)
    for slot, name, theirs in states(engine, module, names):
        torch.testing.assert_close(theirs, after[slot][name], rtol=0, atol=1e-6, msg=f"{slot} of {network}.{name} after a step")


def loaded(folder: Path, network: str, module: nn.Module, given: dict[str, Tensor], stage: int) -> deepspeed.DeepSpeedEngine:
    """An engine as anyone would make it, with the converted checkpoint in it."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.zero_()  # what is found later was loaded
            parameter.register_hook(lambda _, name=name: given[name])
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "gradient_clipping": 0.0,
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 100}},
        "checkpoint": {"load_universal": True},
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=torch.optim.AdamW(module.parameters(), lr=1.0), config=config)
    path, client_state = engine.load_checkpoint(str(folder))
    assert path and client_state["retinaforge"]["network"] == network
    return engine


def states(engine: deepspeed.DeepSpeedEngine, module: nn.Module, names: list[str]):
    """(slot, name, whole tensor) of weights and moments."""
    if engine.zero_optimization_stage() < 3:
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # before the first step the moments are not linked yet
    for name, parameter in zip(names, module.parameters(), strict=True):
        shape = getattr(parameter, "ds_shape", parameter.shape)
        yield "fp32", name, safe_get_full_fp32_param(parameter).view(shape)
        for slot in SLOTS[1:]:
            yield slot, name, safe_get_full_optimizer_state(parameter, slot).view(shape)


def stepped(state: State, step: Tensor, given: dict[str, Tensor], rates: dict) -> State:
    """One step of torch.optim.AdamW."""
    parameters = {name: nn.Parameter(value.clone()) for name, value in state["fp32"].items()}
    optimizer = torch.optim.AdamW(parameters.values(), **rates)
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {"step": step.clone(), **{slot: state[slot][name].clone() for slot in SLOTS[1:]}}
        parameter.grad = given[name]
    optimizer.step()
    return {slot: {n: p.detach() if slot == "fp32" else optimizer.state[p][slot] for n, p in parameters.items()} for slot in SLOTS}


def main(run: Path, converted: Path, stage: int) -> None:
    vars(deepspeed.ops)["__compatible_ops__"] = {}  # it would compile an all-reduce for inference first: a minute, and a compiler
    deepspeed.init_distributed(dist_backend="gloo")
    for training in ("vqgan", "diffusion"):
        checkpoint = CheckpointStore(run / training / "checkpoints", Alone()).newest(progress_exists=True)
        for network, (module, number) in networks(checkpoint.state["identity"]).items():
            carry_on(converted / training / network, network, module, number, checkpoint, stage)
            if torch.distributed.get_rank() == 0:
                print(f"carried on: {network}", flush=True)
    torch.distributed.barrier()
    os._exit(0)  # ZeRO-3 aborts now and then while Python tears it down


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

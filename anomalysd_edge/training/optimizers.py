"""AdamW with float32 or 8-bit moments; its state and the loss scale as named tensors, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from anomalysd_edge.errors import MissingExtra
from anomalysd_edge.training.checkpoints import Tensors, require_tensor
from anomalysd_edge.training.settings import TrainSettings

_MOMENTS = ("exp_avg", "exp_avg_sq")
_SCALE, _GROWTH = "scaler/scale", "scaler/growth"


def make_optimizer(
    settings: TrainSettings, weights: Mapping[str, torch.nn.Parameter], peak_rates: Mapping[str, float]
) -> torch.optim.Optimizer:
    """AdamW on `weights` with one parameter group per peak learning rate, stored in the group as "peak".

    `peak_rates`: by prefix of the weights' names; the longest match counts. Raises MissingExtra without bitsandbytes.
    """
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, weight in weights.items():
        prefix = max((known for known in peak_rates if name.startswith(known)), key=len)
        groups.setdefault(prefix, []).append(weight)
    listed = [{"params": group, "lr": peak_rates[key], "peak": peak_rates[key]} for key, group in groups.items()]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(listed, weight_decay=settings.weight_decay)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "optimizer adamw8bit needs the package 'bitsandbytes', which is not installed: pip install bitsandbytes, "
            "or set optimizer to adamw"
        ) from error
    found: torch.optim.Optimizer = AdamW8bit(listed, weight_decay=settings.weight_decay)
    return found


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> Tensors:
    """The optimizer state by kind and parameter, for instance exp_avg/NAME; numbers become tensors."""
    found: Tensors = {}
    for name, parameter in parameters.items():
        for kind, value in optimizer.state[parameter].items():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            # All parameters share one quantisation map; safetensors refuses shared memory.
            found[f"{kind}/{name}"] = tensor.clone() if kind.startswith("qmap") else tensor
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], tensors: Tensors
) -> None:
    """The inverse of `optimizer_tensors`. Raises RunError if the checkpoint lacks a tensor."""
    kinds = {key.split("/")[0] for key in tensors if "/" in key} - {"scaler"}
    if kinds >= set(_MOMENTS):
        for name, parameter in parameters.items():
            for kind in _MOMENTS:
                # In the parameter's memory format, as AdamW allocates it.
                state = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                optimizer.state[parameter][kind] = state.detach().copy_(require_tensor(tensors, f"{kind}/{name}"))
            optimizer.state[parameter]["step"] = require_tensor(tensors, f"step/{name}")
        return
    for name, parameter in parameters.items():  # bitsandbytes: quantised moments, scales and quantisation maps
        for kind in kinds:
            key = f"{kind}/{name}"
            if key in tensors:
                value = tensors[key]
                optimizer.state[parameter][kind] = int(value) if kind == "step" else value.to(parameter.device)


def scaler_tensors(scaler: torch.amp.GradScaler) -> Tensors:
    """The loss scale of float16 and its growth counter; empty if no loss scaling is used."""
    state = scaler.state_dict()
    if not state:
        return {}
    return {_SCALE: torch.tensor(state["scale"]), _GROWTH: torch.tensor(state["_growth_tracker"])}


def restore_scaler(scaler: torch.amp.GradScaler, tensors: Tensors) -> None:
    """The inverse of `scaler_tensors`."""
    if scaler.is_enabled():
        state = scaler.state_dict()
        scale, growth = (require_tensor(tensors, name) for name in (_SCALE, _GROWTH))
        state.update(scale=float(scale), _growth_tracker=int(growth))
        scaler.load_state_dict(state)

"""AdamW, plain or with its moments in 8 bits; its state and the loss scale as named tensors, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from anomalysd_edge.errors import MissingExtra
from anomalysd_edge.training.checkpoints import Tensors, named
from anomalysd_edge.training.settings import TrainSettings

_MOMENTS = ("exp_avg", "exp_avg_sq")
_SCALE, _GROWTH = "scaler/scale", "scaler/growth"


def make_optimizer(
    settings: TrainSettings, weights: Mapping[str, torch.nn.Parameter], peaks: Mapping[str, float]
) -> torch.optim.Optimizer:
    """AdamW on `weights`, a group per peak learning rate, which each group keeps as "peak".

    `peaks`: by a prefix of the weights' names, the longest that fits. Raises MissingExtra without bitsandbytes.
    """
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, weight in weights.items():
        prefix = max((known for known in peaks if name.startswith(known)), key=len)
        groups.setdefault(prefix, []).append(weight)
    listed = [{"params": group, "lr": peaks[prefix], "peak": peaks[prefix]} for prefix, group in groups.items()]
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
    """The state, named by kind and parameter, for instance exp_avg/NAME; numbers become tensors."""
    found: Tensors = {}
    for name, parameter in parameters.items():
        for kind, value in optimizer.state[parameter].items():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            # One map of quantised values serves all parameters; a file names no tensor twice.
            found[f"{kind}/{name}"] = tensor.clone() if kind.startswith("qmap") else tensor
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], tensors: Tensors
) -> None:
    """The inverse of `optimizer_tensors`. Raises RunError where a checkpoint lacks something."""
    kinds = {key.split("/")[0] for key in tensors if "/" in key} - {"scaler"}
    if kinds >= set(_MOMENTS):
        for name, parameter in parameters.items():
            for kind in _MOMENTS:
                # In the parameter's own memory layout, as AdamW makes it.
                state = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                optimizer.state[parameter][kind] = state.detach().copy_(named(tensors, f"{kind}/{name}"))
            optimizer.state[parameter]["step"] = named(tensors, f"step/{name}")
        return
    for name, parameter in parameters.items():  # bitsandbytes: quantised moments, their scales and maps
        for kind in kinds:
            key = f"{kind}/{name}"
            if key in tensors:
                value = tensors[key]
                optimizer.state[parameter][kind] = int(value) if kind == "step" else value.to(parameter.device)


def scaler_tensors(scaler: torch.amp.GradScaler) -> Tensors:
    """The loss scale of float16 and how long it has held; nothing where no scale is used."""
    state = scaler.state_dict()
    if not state:
        return {}
    return {_SCALE: torch.tensor(state["scale"]), _GROWTH: torch.tensor(state["_growth_tracker"])}


def restore_scaler(scaler: torch.amp.GradScaler, tensors: Tensors) -> None:
    """The inverse of `scaler_tensors`."""
    if scaler.is_enabled():
        state = scaler.state_dict()
        state.update(scale=float(named(tensors, _SCALE)), _growth_tracker=int(named(tensors, _GROWTH)))
        scaler.load_state_dict(state)

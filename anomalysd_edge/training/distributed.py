"""The processes that train together, through accelerate: which samples are this one's, and sums over all.

Every process draws the whole step's samples, which are a function of seed and step, and works off its own rows; the
gradients are summed. So the step is that of one process with the same batch, up to the order of additions. Started by

    accelerate launch --multi_gpu --num_processes 2 -m anomalysd_edge.cli train --device cuda ...
    torchrun --standalone --nproc-per-node 2 -m anomalysd_edge.cli train ...        # CPU processes, over gloo
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from anomalysd_edge.errors import SettingsError, missing_extra

BUCKET_BYTES = 64 * 2**20
"""Gradients are summed in pieces of about this size: one a tensor is slow, all at once needs their memory again."""


class Processes:
    """This process among its fellows; alone where no launcher said otherwise."""

    def __init__(self, device: str) -> None:
        """`device`: "cpu" or "cuda". Raises MissingExtra where a launcher started several and accelerate is missing."""
        self.count, self.number = 1, 0
        self.device = torch.device(device)
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import Accelerator
            except ModuleNotFoundError as error:
                raise missing_extra("accelerate", "train") from error
            self._accelerator = Accelerator(cpu=device == "cpu")
            self.count, self.number = self._accelerator.num_processes, self._accelerator.process_index
            self.device = self._accelerator.device

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.number == 0

    def rows(self, batch: int, pieces: int) -> list[slice]:
        """This process's rows of a step of `batch` samples, cut into up to `pieces` runs of nearly equal length.

        Raises SettingsError where there are more processes than samples.
        """
        if batch < self.count:
            raise SettingsError(f"{self.count} processes share a batch of {batch}; raise batch (or decoder_batch)")
        cuts = [round(i * batch / self.count) for i in (self.number, self.number + 1)]
        mine = cuts[1] - cuts[0]
        pieces = min(pieces, mine)
        edges = [cuts[0] + round(i * mine / pieces) for i in range(pieces + 1)]
        return [slice(edges[i], edges[i + 1]) for i in range(pieces)]

    def sum_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; one that is not there counts as 0."""
        bucket: list[Tensor] = []
        size = 0
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if self.count == 1:
                continue
            bucket.append(weight.grad)
            size += weight.grad.numel() * weight.grad.element_size()
            if size >= BUCKET_BYTES:
                self._sum(bucket)
                bucket, size = [], 0
        if bucket:
            self._sum(bucket)

    def sum(self, value: float) -> float:
        """The sum of a number over the processes."""
        if self.count == 1:
            return value
        total = self._accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=self.device), "sum")
        return float(total)

    def wait(self) -> None:
        """Until all are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def _sum(self, tensors: list[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        flat = self._accelerator.reduce(flat, "sum")
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()

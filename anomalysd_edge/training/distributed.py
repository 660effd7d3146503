"""Data-parallel training through accelerate: this process's rows of a batch, and sums over all processes.

Every process draws the whole batch of a step, a function of seed and step, and computes its own rows; gradients are
summed. So a step equals that of one process with the same batch, up to the order of additions. Started by

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
"""Bucket size of the gradient all-reduce: one tensor at a time is slow, all at once doubles their memory."""


class Processes:
    """The group of training processes: one, unless a launcher set WORLD_SIZE."""

    def __init__(self, device: str) -> None:
        """`device`: "cpu" or "cuda". Raises MissingExtra if a launcher started several and accelerate is missing."""
        self.world_size, self.rank = 1, 0
        self.device = torch.device(device)
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import Accelerator
            except ModuleNotFoundError as error:
                raise missing_extra("accelerate", "train") from error
            self._accelerator = Accelerator(cpu=device == "cpu")
            self.world_size, self.rank = self._accelerator.num_processes, self._accelerator.process_index
            self.device = self._accelerator.device

    @property
    def is_main(self) -> bool:
        """Rank 0, the process that writes files."""
        return self.rank == 0

    def rows(self, batch: int, pieces: int) -> list[slice]:
        """This process's rows of a batch of `batch` samples, as up to `pieces` micro-batches of nearly equal size.

        Raises SettingsError if there are more processes than samples.
        """
        if batch < self.world_size:
            raise SettingsError(f"{self.world_size} processes share a batch of {batch}; raise batch (or decoder_batch)")
        cuts = [round(i * batch / self.world_size) for i in (self.rank, self.rank + 1)]
        mine = cuts[1] - cuts[0]
        pieces = min(pieces, mine)
        edges = [cuts[0] + round(i * mine / pieces) for i in range(pieces + 1)]
        return [slice(edges[i], edges[i + 1]) for i in range(pieces)]

    def sum_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """All-reduce: replace each gradient by its sum over the processes; a missing one counts as 0."""
        bucket: list[Tensor] = []
        size = 0
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if self.world_size == 1:
                continue
            bucket.append(weight.grad)
            size += weight.grad.numel() * weight.grad.element_size()
            if size >= BUCKET_BYTES:
                self._sum(bucket)
                bucket, size = [], 0
        if bucket:
            self._sum(bucket)

    def sum(self, value: float) -> float:
        """The sum of `value` over the processes."""
        if self.world_size == 1:
            return value
        total = self._accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=self.device), "sum")
        return float(total)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def _sum(self, tensors: list[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        flat = self._accelerator.reduce(flat, "sum")
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()

"""Training in bfloat16 on a CPU: master weights in float32, and an attention that is fast there."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class BatchedAttention(nn.MultiheadAttention):
    """Self-attention by batched matrix products.

    On CPUs, PyTorch's fused attention takes five times as long for the backward pass of short sequences in bfloat16
    (95 against 17 ms for 128 × 4 × 65 × 64). Parameters and results are those of nn.MultiheadAttention.
    """

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """Attend within ``query`` (batch, tokens, width); ``key`` and ``value`` must be the same tensor."""
        if query is not key or key is not value or not self.batch_first:
            raise ValueError("only batch-first self-attention")
        batch, tokens, width = query.shape
        heads, depth = self.num_heads, width // self.num_heads
        joint = nn.functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = joint.view(batch, tokens, 3, heads, depth).permute(2, 0, 3, 1, 4).reshape(3, -1, tokens, depth)
        bias = torch.zeros(1, 1, 1, dtype=q.dtype) if attn_mask is None else attn_mask[None].to(q.dtype)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=0 if attn_mask is None else 1, alpha=depth**-0.5)
        seen = torch.bmm(scores.softmax(dim=-1), v)
        merged = seen.view(batch, heads, tokens, depth).transpose(1, 2).reshape(batch, tokens, width)
        return self.out_proj(merged), None


def use_batched_attention(model: nn.Module) -> None:
    """Let every attention of ``model`` compute by BatchedAttention; names and values of parameters stay."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = BatchedAttention


class MasterWeights:
    """AdamW on float32 copies of a bfloat16 model's parameters, with warm-up, cosine decay and clipping."""

    def __init__(self, model: nn.Module, *, rate: float, decay: float, warmup: float = 0.05) -> None:
        """Copy the trainable parameters; ``rate`` is the peak learning rate, ``warmup`` its share of the training."""
        self._live = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._masters = [parameter.detach().float().clone() for parameter in self._live]
        decayed = [master for master in self._masters if master.ndim >= 2]
        others = [master for master in self._masters if master.ndim < 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}],
            lr=rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self._rate, self._warmup = rate, warmup

    def step(self, progress: float) -> float:
        """Apply the gradients and clear them; ``progress`` in 0–1 sets the learning rate, which is returned."""
        if progress < self._warmup:
            rate = self._rate * max(progress, 0.002) / self._warmup
        else:
            through = min(1.0, (progress - self._warmup) / (1 - self._warmup))
            rate = self._rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * through)))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for live, master in zip(self._live, self._masters, strict=True):
            master.grad = None if live.grad is None else live.grad.float()
        torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        self._optimizer.step()
        with torch.no_grad():
            for live, master in zip(self._live, self._masters, strict=True):
                live.copy_(master)
                live.grad = None
        return rate

    def values(self) -> list[Tensor]:
        """Return the parameters in float32, in the model's order."""
        return self._masters

    def load_values(self, values: list[Tensor]) -> None:
        """Take parameters in float32 without the optimiser's memory, and give the model its weights."""
        with torch.no_grad():
            for live, master, saved in zip(self._live, self._masters, values, strict=True):
                master.copy_(saved)
                live.copy_(saved)

    def state(self) -> dict[str, Any]:
        """Return what ``load_state`` needs to go on from here."""
        return {"masters": self._masters, "optimizer": self._optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state, and give the model its weights."""
        self.load_values(state["masters"])
        self._optimizer.load_state_dict(state["optimizer"])

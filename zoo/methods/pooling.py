"""From the states of tokens to one embedding.

All take hidden states `[B, L, D]` and the tokens to pool `[B, L]` (no padding, no instruction).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name


def masked_mean(hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """Mean over the tokens of `mask`; 0 where there are none."""
    total = torch.einsum("bld,bl->bd", hidden, mask.to(hidden.dtype))
    return total / mask.sum(1, keepdim=True).clamp_min(1)


def first_token(hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """State of the first position (CLS), also where an instruction follows it. Texts are padded on the right."""
    return hidden[:, 0]


def last_token(hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """State of the last token of `mask`."""
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return hidden[
        torch.arange(hidden.shape[0], device=mask.device), last
    ]  # `len` would fix the batch in an exported graph


class LatentAttentionPooling(nn.Module):
    r"""NV-Embed's pooling: every token attends to a trained dictionary of latents, then passes an MLP; then the mean.

    With hidden states $Q$ and latents $M$: $O = \mathrm{softmax}(q k^T/\sqrt{d_h})\,v$, where $q = \mathrm{LN}_a(Q) W_q$ and
    $(k | v) = \mathrm{LN}_c(M) W_{kv}$; $Y = O W_o + Q$ (the raw states); $(a | g) = \mathrm{LN}_f(Y) W_1 + b_1$;
    $Y' = (a \cdot \mathrm{gelu}(g)) W_2 + b_2 + Y$. Tokens are queries and latents keys, the reverse of a Perceiver; the
    paper's formula has $K = V = M$, the released model the projections above.

    Source: Lee et al. 2025 (arXiv 2405.17428). Its sizes: 512 latents, 8 heads, dim_head = dim = 4096.

    Args:
        dim: width of the hidden states.
        n_latents: size of the dictionary.
        heads: attention heads.
        dim_head: width of each; None means dim / heads.
        expansion: width of the MLP over `dim`.
    """

    def __init__(
        self, dim: int, n_latents: int = 512, heads: int = 8, dim_head: int | None = None, expansion: int = 4
    ) -> None:
        super().__init__()
        dim_head = dim_head or dim // heads
        self.heads = heads
        self.latents = nn.Parameter(torch.randn(n_latents, dim))
        self.norm, self.latent_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.mlp_in = nn.Linear(dim, 2 * expansion * dim)
        self.mlp_out = nn.Linear(expansion * dim, dim)

    def tokens(self, hidden: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The new state of each token, which depends on no other token."""
        q = self.to_q(self.norm(hidden)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        kv = self.to_kv(self.latent_norm(self.latents)).unflatten(1, (2, self.heads, -1))
        k, v = kv.permute(1, 2, 0, 3)[:, None].expand(-1, hidden.shape[0], -1, -1, -1)
        y = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)) + hidden
        a, gate = self.mlp_in(self.mlp_norm(y)).chunk(2, 2)
        return self.mlp_out(a * F.gelu(gate)) + y

    def forward(self, hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """The raw embedding; padding and instruction tokens are left out of the mean and of nothing else.

        Raises:
            ValueError: a row has no token to pool.
        """
        if not torch.compiler.is_exporting() and not mask.any(1).all():
            raise ValueError("a text has no token to pool (nothing but instruction or padding)")
        return masked_mean(self.tokens(hidden), mask)

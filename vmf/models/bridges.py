"""The token side: Mobile to Former, the Former, and Former back to Mobile (arXiv 2108.05895, 3.1).

Tokens Z are (B, M, d) and belong to a whole clip: the bridges attend over all n = T H W positions
of X (B, C, T, H, W), which is what the abstract of arXiv 2208.12257 asks of the video network. No
position is encoded, so the order of frames reaches the tokens only through the convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vmf_kernels
from vmf.models.config import BRIDGE_HEADS, FORMER_HEADS
from vmf.models.layers import DropPath


class MobileToFormer(nn.Module):
    """Tokens look at features: `Z <- LN(Z + (O * 2 hsig(Z Wa)) Wp)`.

    `O = softmax(Q K^T / sqrt(C / 2)) V` over the n positions in two heads, with `Q = Z Wq` and
    unprojected features as both keys and values.

    Args:
        channels: C, even.
        token_dim: d.
        drop_path: Drop-path rate of the branch.
    """

    def __init__(self, channels: int, token_dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.query = nn.Linear(token_dim, channels)
        self.gate = nn.Linear(token_dim, channels)
        self.proj = nn.Linear(channels, token_dim)
        self.drop_path = DropPath(drop_path)
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """X (B, C, T, H, W) and Z (B, M, d) to the new Z."""
        gathered = vmf_kernels.few_query_attention(self.query(tokens), features, BRIDGE_HEADS)
        gathered = gathered * (2 * F.hardsigmoid(self.gate(tokens)))
        return self.norm(tokens + self.drop_path(self.proj(gathered)))

    def attention(self, features: Tensor, tokens: Tensor) -> Tensor:
        """The softmax weights, mean over heads: (B, M, T, H, W), each token's summing to 1."""
        query = self.query(tokens).unflatten(-1, (BRIDGE_HEADS, -1))
        keys = features.flatten(2).unflatten(1, (BRIDGE_HEADS, -1))
        scores = torch.einsum("bmhc,bhcn->bhmn", query, keys) * query.shape[-1] ** -0.5
        return scores.softmax(-1).mean(1).unflatten(-1, features.shape[2:])


class Former(nn.Module):
    """Tokens look at each other, then a feed-forward layer; both post-norm.

    `Z <- LN(Z + softmax(Q K^T / sqrt(d / 4)) V Wo)` in four heads with `Q = Z Wq` and Z itself as
    keys and values; `Z <- LN(Z + W2 GELU(W1 Z))` with hidden width 2 d.

    Args:
        token_dim: d, a multiple of 4.
        drop_path: Drop-path rate of the attention branch.
    """

    def __init__(self, token_dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.query = nn.Linear(token_dim, token_dim)
        self.proj = nn.Linear(token_dim, token_dim)
        self.drop_path = DropPath(drop_path)
        self.norm = nn.LayerNorm(token_dim)
        self.expand = nn.Linear(token_dim, 2 * token_dim)
        self.contract = nn.Linear(2 * token_dim, token_dim)
        self.mlp_norm = nn.LayerNorm(token_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Z (B, M, d) to the new Z."""
        # The tokens are their own few features: (B, d, M) with M positions.
        mixed = vmf_kernels.few_query_attention(
            self.query(tokens), tokens.transpose(1, 2), FORMER_HEADS
        )
        tokens = self.norm(tokens + self.drop_path(self.proj(mixed)))
        return self.mlp_norm(tokens + self.contract(F.gelu(self.expand(tokens))))


class FormerToMobile(nn.Module):
    """Features look at tokens: `Y <- Y + softmax(Q K^T / sqrt(C / 2)) V` over the M tokens.

    Two heads, `Q = Y` unprojected, `K = Z Wk`, `V = Z Wv`; nothing follows the sum.

    Args:
        channels: C, even.
        token_dim: d.
        drop_path: Drop-path rate of the branch.
    """

    def __init__(self, channels: int, token_dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.key = nn.Linear(token_dim, channels)
        self.value = nn.Linear(token_dim, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Y (B, C, T, H, W) and Z (B, M, d) to the new Y."""
        # The branch is linear in its values: dropping them spares a pass over the features.
        value = self.drop_path(self.value(tokens))
        return vmf_kernels.few_key_attention(features, self.key(tokens), value, BRIDGE_HEADS)

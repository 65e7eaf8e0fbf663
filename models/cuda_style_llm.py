"""Before the flow: a decoder-only LLM inference stack as a CUDA team writes it, the thing one has before porting.

It stands alone (torch only), is idiomatic for an NVIDIA GPU, and is the running example of the docs. What it does that
a recorded graph cannot take as it is:

    causal_bias             `torch.triu_indices`, and an indexed write into the mask
    apply_rotary            complex arithmetic (`torch.polar`, `view_as_complex`)
    Attention, MLP          interleaved weights, split by strided slices: `[:, :, ::2]`, `[..., 1::2]`
    Attention.extend        a KV cache grown by `torch.cat`: new shapes at every token
    Transformer.confident   `.item()`: the host waits for the device after every layer
    Transformer.forward     skips the rest of the layers when `confident` says so: Python branches on data
    generate                ragged prompts, `.item()` for each token, finished rows cut out of the batch, an end on data

With `early_exit=None` nothing in `forward` depends on data, and `torch.export` takes it in static shapes (not in a
dynamic length: `triu_indices` fixes it). `generate` depends on data in any case.

Shape suffixes:
    B rows (prompts)   S new tokens   T all tokens so far (cached and new)   V vocabulary
    D model width   F width of the MLP   N query heads   K key-value heads   H head width   L layers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CONFIGS", "Cache", "ModelArgs", "Transformer", "build", "example_inputs", "generate"]

LayerCache = tuple[Tensor, Tensor]  # keys and values, both BTKH
Cache = list[LayerCache]


@dataclass(frozen=True)
class ModelArgs:
    """Sizes of the stack.

    Attributes:
        early_exit: once every row's best next token is this probable, the other layers are skipped; None runs all.
    """

    dim: int = 64
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 2
    head_dim: int = 16
    ffn_dim: int = 176
    vocab_size: int = 256
    max_context: int = 256
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    early_exit: float | None = None


CONFIGS = {
    "tiny": ModelArgs(),
    "small": ModelArgs(dim=256, n_layer=8, n_head=16, n_kv_head=4, ffn_dim=704, vocab_size=4096, max_context=1024),
}


def precompute_rotary(head_dim: int, end: int, theta: float) -> Tensor:
    """Rotations e^(i t f) for every position t and frequency f: complex64 (end, H/2)."""
    freqs = 1.0 / (theta ** (torch.arange(0, head_dim, 2)[: head_dim // 2].float() / head_dim))
    angles = torch.outer(torch.arange(end).float(), freqs)
    return torch.polar(torch.ones_like(angles), angles)


def apply_rotary(x_BSKH: Tensor, rotary_BSH: Tensor) -> Tensor:
    """Rotates neighbouring pairs of a head as complex numbers."""
    pairs = torch.view_as_complex(x_BSKH.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary_BSH[:, :, None]).flatten(-2).type_as(x_BSKH)


def causal_bias(new: int, total: int, start_B: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, S, T): the lowest finite value on the future and on the padding left of `start_B`."""
    lowest = torch.finfo(dtype).min
    bias_ST = torch.zeros(new, total, dtype=dtype, device=start_B.device)
    row, col = torch.triu_indices(new, total, offset=total - new + 1, device=start_B.device)
    bias_ST[row, col] = lowest
    padding_BT = torch.arange(total, device=start_B.device) < start_B[:, None]
    return bias_ST.masked_fill(padding_BT[:, None, :], lowest)[:, None]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last dimension."""
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class Attention(nn.Module):
    """Grouped-query attention over everything so far."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.wq = nn.Linear(args.dim, args.n_head * args.head_dim, bias=False)
        # Key and value heads are interleaved (k0 v0 k1 v1 ...), so that tensor parallelism can cut between pairs.
        self.wkv = nn.Linear(args.dim, 2 * args.n_kv_head * args.head_dim, bias=False)
        self.wo = nn.Linear(args.n_head * args.head_dim, args.dim, bias=False)

    def extend(self, x_BSD: Tensor, rotary_BSH: Tensor, cached: LayerCache | None) -> LayerCache:
        """Keys and values of all tokens: the cached ones and those of `x`."""
        kv = self.wkv(x_BSD).unflatten(-1, (2 * self.args.n_kv_head, self.args.head_dim))
        k_BSKH, v_BSKH = apply_rotary(kv[:, :, ::2], rotary_BSH), kv[:, :, 1::2]
        if cached is None:
            return k_BSKH, v_BSKH
        return torch.cat([cached[0], k_BSKH], dim=1), torch.cat([cached[1], v_BSKH], dim=1)

    def forward(
        self, x_BSD: Tensor, rotary_BSH: Tensor, bias_B1ST: Tensor, cached: LayerCache | None
    ) -> tuple[Tensor, LayerCache]:
        """BSD to BSD, and the keys and values of all tokens."""
        q_BSNH = apply_rotary(self.wq(x_BSD).unflatten(-1, (self.args.n_head, self.args.head_dim)), rotary_BSH)
        k_BTKH, v_BTKH = self.extend(x_BSD, rotary_BSH, cached)
        groups = self.args.n_head // self.args.n_kv_head
        k_BNTH = k_BTKH.transpose(1, 2).repeat_interleave(groups, dim=1)
        v_BNTH = v_BTKH.transpose(1, 2).repeat_interleave(groups, dim=1)
        y_BNSH = F.scaled_dot_product_attention(q_BSNH.transpose(1, 2), k_BNTH, v_BNTH, attn_mask=bias_B1ST)
        return self.wo(y_BNSH.transpose(1, 2).flatten(2)), (k_BTKH, v_BTKH)


class MLP(nn.Module):
    """Gated SiLU."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.w_in = nn.Linear(args.dim, 2 * args.ffn_dim, bias=False)  # gate and up interleaved
        self.w_out = nn.Linear(args.ffn_dim, args.dim, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """BSD to BSD."""
        h = self.w_in(x_BSD)
        y_BSD: Tensor = self.w_out(F.silu(h[..., ::2]) * h[..., 1::2])
        return y_BSD


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(args.dim, args.norm_eps)
        self.attn = Attention(args)
        self.mlp_norm = RMSNorm(args.dim, args.norm_eps)
        self.mlp = MLP(args)

    def forward(
        self, x_BSD: Tensor, rotary_BSH: Tensor, bias_B1ST: Tensor, cached: LayerCache | None, skip: bool = False
    ) -> tuple[Tensor, LayerCache]:
        """BSD to BSD, and the keys and values of all tokens."""
        if skip:  # later tokens may run this layer, so its cache must not miss the tokens of this step
            return x_BSD, self.attn.extend(self.attn_norm(x_BSD), rotary_BSH, cached)
        y_BSD, cached = self.attn(self.attn_norm(x_BSD), rotary_BSH, bias_B1ST, cached)
        x_BSD = x_BSD + y_BSD
        return x_BSD + self.mlp(self.mlp_norm(x_BSD)), cached


class Transformer(nn.Module):
    """The whole stack: tokens in, logits and the grown cache out."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.embed = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList(Block(args) for _ in range(args.n_layer))
        self.norm = RMSNorm(args.dim, args.norm_eps)
        self.head = nn.Linear(args.dim, args.vocab_size, bias=False)
        # Not a buffer: model.to(torch.bfloat16) would cast a complex buffer to its real part.
        self.rotary = precompute_rotary(args.head_dim, args.max_context, args.rope_theta)

    def confident(self, x_BSD: Tensor) -> bool:
        """Whether the best next token of every row is already likely enough (`args.early_exit`)."""
        probs_BV = self.head(self.norm(x_BSD[:, -1])).float().softmax(-1)
        return bool(probs_BV.amax(-1).min().item() >= self.args.early_exit)

    def forward(self, tokens: Tensor, cache: Cache | None = None, start: Tensor | None = None) -> tuple[Tensor, Cache]:
        """One step: prefill without a cache, decode (or a further chunk) with one.

        Args:
            tokens: int64 ids BS.
            cache: keys and values of the tokens before, as returned by the step before.
            start: int64 B, column of each row's first real token where shorter prompts are padded on the left.

        Returns:
            Logits BSV and the grown cache.
        """
        past = 0 if cache is None else cache[0][0].shape[1]
        new, total = tokens.shape[1], past + tokens.shape[1]
        start_B = tokens.new_zeros(tokens.shape[0]) if start is None else start
        positions_BS = (torch.arange(past, total, device=tokens.device) - start_B[:, None]).clamp(min=0)
        rotary_BSH = self.rotary.to(tokens.device)[positions_BS]
        x_BSD = self.embed(tokens)
        bias_B1ST = causal_bias(new, total, start_B, x_BSD.dtype)
        grown: Cache = []
        done = False
        for i, layer in enumerate(self.layers):
            cached = None if cache is None else cache[i]
            x_BSD, cached = layer(x_BSD, rotary_BSH, bias_B1ST, cached, skip=done)
            grown.append(cached)
            if self.args.early_exit is not None and i + 1 < self.args.n_layer:
                done = done or self.confident(x_BSD)
        return self.head(self.norm(x_BSD)), grown


def sample(logits_BV: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """The next token of each row (B,): the likeliest one at temperature 0."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV / temperature
    if top_k is not None:
        logits_BV[logits_BV < logits_BV.topk(top_k).values[:, -1:]] = -float("inf")
    return torch.multinomial(logits_BV.softmax(-1), 1)[:, 0]


def pack(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pads prompts on the left: ids BS, and the column B at which each begins."""
    width = max(len(prompt) for prompt in prompts)
    tokens_BS = torch.zeros(len(prompts), width, dtype=torch.int64, device=device)
    for i, prompt in enumerate(prompts):
        tokens_BS[i, -len(prompt) :] = torch.tensor(prompt)
    return tokens_BS, torch.tensor([width - len(prompt) for prompt in prompts], device=device)


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    eos_id: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
) -> list[list[int]]:
    """Continues a ragged batch of prompts; rows that have emitted `eos_id` leave the batch.

    Args:
        model: the stack.
        prompts: token ids, one non-empty sequence a row.
        max_new_tokens: length at which a row ends without `eos_id`.
        eos_id: token that ends a row; it is part of the result.
        temperature: 0 is greedy.
        top_k: sample among the likeliest only.

    Returns:
        The new tokens of each prompt.
    """
    tokens_BS, start_B = pack(prompts, model.embed.weight.device)
    rows_B = torch.arange(len(prompts), device=tokens_BS.device)  # the prompt that each row of the batch continues
    results: list[list[int]] = [[] for _ in prompts]
    cache: Cache | None = None
    for _ in range(max_new_tokens):
        logits_BSV, cache = model(tokens_BS, cache, start_B)
        next_B = sample(logits_BSV[:, -1], temperature, top_k)
        for i in range(len(next_B)):
            results[int(rows_B[i].item())].append(int(next_B[i].item()))
        live_B = next_B != eos_id if eos_id is not None else torch.ones_like(next_B, dtype=torch.bool)
        if not live_B.any():
            break
        if not live_B.all():
            first = start_B[live_B].min().item()  # columns before it only pad rows that are still running
            cache = [(k[live_B, first:], v[live_B, first:]) for k, v in cache]
            next_B, rows_B, start_B = next_B[live_B], rows_B[live_B], start_B[live_B] - first
        tokens_BS = next_B[:, None]
    return results


def build(name: str = "tiny", *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: object) -> Transformer:
    """Builds a named config with seeded random weights, in eval mode.

    Args:
        name: a key of `CONFIGS`.
        seed: of the weights; the global generator is left as it was.
        dtype: of the weights.
        overrides: fields of `ModelArgs`, e.g. `early_exit=0.5`.
    """
    args = replace(CONFIGS[name], **overrides)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(args)
        for weight in model.parameters():
            if weight.dim() == 2:  # wider than for training, so that untrained logits differ enough to be told apart
                nn.init.normal_(weight, std=1.0 / weight.shape[1] ** 0.5)
    return model.to(dtype).eval()


def example_inputs(model: Transformer, batch: int = 2, sequence: int = 16) -> dict[str, Tensor]:
    """Random ids as keyword arguments of a prefill."""
    generator = torch.Generator().manual_seed(0)
    return {"tokens": torch.randint(model.args.vocab_size, (batch, sequence), generator=generator)}

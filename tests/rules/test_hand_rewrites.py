"""What people rewrite by hand to run a model on Gaudi, as they found it: legal on both chips, with the values of eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gaudicc.capture import capture
from gaudicc.interpreter import interpret
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.pipeline import Pipeline
from gaudicc.targets import Mode, load_target
from gaudicc.verify import Level
from tests.rules.cases import Cases

case = Cases()
X = case.floats(2, 6, 8)
IDS = case.integers(0, 6, 2, 6)
IMAGE = case.floats(1, 3, 8, 8)
TABLE = case.floats(6, 8)
HEADS, GROUPS = case.floats(2, 4, 6, 8), case.floats(2, 2, 6, 8)


@case(X)
def triangle_masks(x: Tensor) -> Any:
    size = x.shape[1]
    above = torch.ones(size, size, dtype=torch.bool).triu(1)
    rows, columns = torch.triu_indices(size, size, 1)
    return (x @ x.mT).masked_fill(above, float("-inf")), torch.tril(x @ x.mT), x[:, rows] - x[:, columns]


@case(HEADS, GROUPS)
def repeated_heads(q: Tensor, k: Tensor) -> Tensor:
    k = k[:, :, None].expand(2, 2, 2, 6, 8).reshape(2, 4, 6, 8)
    return torch.softmax(q @ k.mT / 8**0.5, -1) @ k


@case(X, TABLE[0])
def root_mean_square(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, (8,), 1 + weight) + x / torch.sqrt((x * x).mean(-1, True) + 1e-6) * weight


@case(HEADS, case.floats(6, 4))
def complex_rotation(x: Tensor, angles: Tensor) -> Tensor:
    turn = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(torch.view_as_complex(x.reshape(2, 4, 6, 4, 2)) * turn).flatten(3)


@case(IMAGE, case.floats(5, 48))
def unfolded_patches(image: Tensor, weight: Tensor) -> Tensor:
    folded = image.unfold(2, 4, 4).unfold(3, 4, 4)
    patches = folded.permute(0, 2, 3, 1, 4, 5).reshape(1, 4, 48)
    return functional.linear(patches, weight) + functional.linear(functional.unfold(image, 4, stride=4).mT, weight)


@case(X)
def grouped_top_k(scores: Tensor) -> Any:
    groups = scores.view(2, 6, 4, 2).topk(1, -1).values.sum(-1)
    chosen = groups.topk(2, -1).indices
    mask = torch.zeros_like(groups).scatter(-1, chosen, 1).unsqueeze(-1).expand(2, 6, 4, 2).reshape(2, 6, 8)
    return scores.masked_fill(mask == 0, 0.0).topk(3, -1).values


@case(X, IDS > 2)
def rows_reset_by_a_mask(state: Tensor, fresh: Tensor) -> Tensor:
    state = state.clone()
    state[fresh] = 0
    return state


@case(X, IDS[0])
def fancy_indexing(x: Tensor, order: Tensor) -> Any:
    written = torch.zeros_like(x)
    written[:, order] = x
    return x[:, order], x[torch.arange(2)[:, None], order[None]], written.index_add(1, order, x)


@case(TABLE, IDS, case.floats(12, 8))
def pictures_among_words(table: Tensor, ids: Tensor, pictures: Tensor) -> Tensor:
    words = functional.embedding(ids, table)
    return words.masked_scatter((ids == 5).unsqueeze(-1).expand_as(words), pictures)


@case(X, IDS)
def rolled_by_a_number(x: Tensor, ids: Tensor) -> Any:
    return torch.roll(x, 2, 1), torch.roll(x, (1, -1), (1, 2)), (ids == torch.arange(6)).long()


@case(torch.eye(4) + 0.1 * case.floats(4, 4).tril(-1), case.floats(4, 3))
def triangular_solve(a: Tensor, b: Tensor) -> Any:
    return torch.linalg.solve_triangular(a, b, upper=False, unitriangular=True)


@case(X, case.floats(8, 5), case.floats(5))
def conv1d_of_gpt2(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x.view(-1, 8), weight).view(2, 6, 5)


@case(X, case.integers(0, 2, 2, 6).bool())
def outputs_by_a_mask(x: Tensor, valid: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[~valid] = x[~valid] * 2
    return out


@case(X, case.integers(0, 3, 2), case.floats(3, 8, 2), case.floats(3, 2, 8))
def adapters_by_index(x: Tensor, which: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return x + torch.bmm(torch.bmm(x, down[which]), up[which])


@case(case.floats(6, 8), case.floats(6, 3).softmax(-1), case.floats(3, 8, 4), case.floats(3, 4, 8))
def experts_over_their_tokens(x: Tensor, scores: Tensor, up: Tensor, down: Tensor) -> Tensor:
    weights, chosen = scores.topk(2, -1)
    out = torch.zeros_like(x)
    for expert in range(3):
        token, place = torch.where(chosen == expert)
        out.index_add_(0, token, (x[token] @ up[expert]).relu() @ down[expert] * weights[token, place, None])
    return out


@case(X)
def stepped_and_negative_slices(x: Tensor) -> Any:
    return x[:, ::2], x[..., 1::3], x.flip(1)[:, :3], x[:, -1], x[None, ..., None, 0]


@pytest.mark.parametrize("chip", ["gaudi2", "gaudi3"])
@pytest.mark.parametrize("name", case.functions)
def test_nobody_has_to_rewrite_it(name: str, chip: str) -> None:
    """In compile mode some rest on presumption, as docs/targets.md says; none may fall back."""
    function, inputs = case.functions[name]
    program = capture(function, inputs)
    program.target = target = load_target(chip)
    program, _ = Pipeline(DEFAULT_PIPELINE).run(program, level=Level.STRUCTURE)
    expected = function(*map(torch.clone, inputs))
    theirs = expected if isinstance(expected, tuple) else (expected,)
    for mode in Mode:
        result = interpret(program.root, *program.feed(program.example), target=target, mode=mode)
        assert mode is Mode.COMPILE or result.legal, result.presumed
        ours: Any = result.outputs
        assert len(ours) >= len(theirs)  # flags follow
        for left, right in zip(ours, theirs, strict=False):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)

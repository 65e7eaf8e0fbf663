"""What one call of a compiled model costs beside its ops, and what choosing a bucket costs.

python -m gaudicc.bench.calls > docs/tables/bench_calls.md
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.bench.turns import take_turns
from gaudicc.buckets import Bucket, BucketSet
from gaudicc.calls import inputs_by_name
from gaudicc.compiled import CompiledModel

CALLS = 500
ROUNDS = 21


class Scores(nn.Module):
    """A sequence scored by its softmax over positions: the pads must be masked, and the output is cut.

    Args:
        width: of the embedding.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, width), nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores of token ids i64[batch, seq]: f32[batch, seq, 3]."""
        scores: Tensor = self.head(self.embed(ids)).softmax(1)
        return scores


def compiled_scores() -> CompiledModel:
    """Four buckets over batch and sequence, recorded."""
    shapes = {"ids": {0: Dim("batch", min=1, max=4), 1: Dim("seq", min=1, max=16)}}
    buckets = [{"batch": batch, "seq": seq} for batch in (2, 4) for seq in (8, 16)]
    example = (torch.ones(2, 3, dtype=torch.int64),)
    compiled = gaudicc.compile(Scores().eval(), example, dynamic_shapes=shapes, buckets=buckets)
    compiled.warm_up()
    return compiled


def replay_of(compiled: CompiledModel, ids: Tensor) -> tuple[Bucket, Callable[[], object]]:
    """The bucket of a call, and its recording alone on inputs that are padded already."""
    lengths = {"batch": ids.shape[0], "seq": ids.shape[1]}
    bucket = compiled.buckets.choose(lengths)
    assert compiled._padding is not None
    feed = compiled._padding.pad(inputs_by_name(compiled.program, [ids]), bucket.as_dict(), lengths)
    runner = compiled._runners[bucket]
    return bucket, lambda: runner.run([*feed.values()])


def overhead_rows() -> list[str]:
    """One line per kind of call: the whole call, the replay alone, and the difference, in microseconds."""
    compiled = compiled_scores()
    rows = []
    for kind, shape in {"exact": (4, 16), "padded": (3, 11)}.items():
        ids = torch.randint(0, 50, shape)
        bucket, replay = replay_of(compiled, ids)
        works = {"call": _many(lambda ids=ids: compiled(ids)), "replay": _many(replay)}  # type: ignore[misc]
        turns = take_turns(works, ROUNDS)
        call, alone = (turns[name].cpu_s / CALLS * 1e6 for name in ("call", "replay"))
        rows.append(f"| {kind}, {shape} in {bucket} | {call:.1f} | {alone:.1f} | {call - alone:.1f} |")
    return rows


def choice_microseconds(count: int = 128) -> float:
    """Microseconds to choose among `count` buckets in three dims."""
    rng = random.Random(0)
    dims = ("batch", "query", "context")
    buckets = BucketSet(
        [
            Bucket(dims, (2048, 2048, 2048)),
            *(Bucket(dims, tuple(rng.randint(1, 2048) for _ in dims)) for _ in range(count - 1)),
        ]
    )
    wanted = [{dim: rng.randint(1, 2048) for dim in dims} for _ in range(CALLS)]

    def choose() -> None:
        for sizes in wanted:
            buckets.choose(sizes)

    return take_turns({"choose": choose}, ROUNDS)["choose"].cpu_s / CALLS * 1e6


def _many(work: Callable[[], object]) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(CALLS):
            work()

    return repeat


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    print("<!-- python -m gaudicc.bench.calls > docs/tables/bench_calls.md -->\n")
    print(
        f"torch {torch.__version__}, one thread, CPU time, medians of {ROUNDS} interleaved rounds, measured on CPU.\n"
    )
    print("| call | whole call us | replay alone us | overhead us |\n|---|---|---|---|")
    print("\n".join(overhead_rows()))
    print(f"\nChoosing among 128 buckets in three dims: {choice_microseconds():.2f} us.")


if __name__ == "__main__":
    main()

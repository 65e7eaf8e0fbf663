"""Requests that share the slots of one model: they come and go, and none changes another's tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gaudicc.errors import GaudiccError, LoweringError, StateError
from gaudicc.lm import CompiledLM
from tests.lm.conftest import Reference

Prompts = list[list[int]]


def test_requests_that_arrive_while_others_decode(lm: CompiledLM, reference: Reference, prompts: Prompts) -> None:
    requests = [lm.submit(prompt, max_new_tokens=15 + i) for i, prompt in enumerate(prompts[:5])]  # the fifth waits
    lm.step()
    lm.step()
    requests.append(lm.submit(prompts[5], max_new_tokens=12))
    lm.run()
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.tokens == reference(prompt, request.options.max_new_tokens)
        assert request.reason == "length"


def test_the_host_reads_once_per_chunk(lm: CompiledLM, prompts: Prompts) -> None:
    before = (lm.stats.host_reads, lm.stats.decode_steps, lm.stats.replays)
    lm.run([lm.submit(prompts[0], max_new_tokens=25)])
    reads, steps, replays = (
        after - b
        for after, b in zip((lm.stats.host_reads, lm.stats.decode_steps, lm.stats.replays), before, strict=True)
    )
    assert (steps, replays) == (24, 25)  # the first token is the prefill's
    assert reads == 1 + 3
    assert lm.stats.host_ops == 0


def test_a_stop_id_ends_a_row_in_the_middle_of_a_chunk(lm: CompiledLM, reference: Reference, prompts: Prompts) -> None:
    full = reference(prompts[0], 30)
    end = full[10]
    request, other = lm.submit(prompts[0], max_new_tokens=30, stop=(end,)), lm.submit(prompts[1], max_new_tokens=30)
    lm.run()
    assert request.tokens == full[: full.index(end) + 1]
    assert request.reason == "stop"
    assert other.tokens == reference(prompts[1], 30)


def test_rows_that_stop_early_are_padded(lm: CompiledLM, reference: Reference, prompts: Prompts) -> None:
    full = reference(prompts[0], 12)
    ids = torch.tensor([prompts[0], prompts[0]])
    out = lm.generate(ids, max_new_tokens=12, eos_token_id=full[4], pad_token_id=77)
    cut = full[: full.index(full[4]) + 1]
    assert isinstance(out, torch.Tensor)
    assert out[0].tolist() == prompts[0] + cut
    longer = lm.submit(prompts[0], max_new_tokens=12)
    lm.run([longer])
    assert longer.tokens == full


def test_a_stream_yields_what_generate_returns(lm: CompiledLM, reference: Reference, prompts: Prompts) -> None:
    assert list(lm.stream(prompts[1], max_new_tokens=11)) == reference(prompts[1], 11)


def test_leaving_a_stream_cancels_it(lm: CompiledLM, reference: Reference, prompts: Prompts) -> None:
    other = lm.submit(prompts[2], max_new_tokens=20)
    stream: Any = lm.stream(prompts[1], max_new_tokens=50)
    assert [next(stream) for _ in range(3)] == reference(prompts[1], 3)
    stream.close()
    lm.run()
    assert other.tokens == reference(prompts[2], 20)


def test_cancel_and_a_failing_callback_leave_the_others_alone(
    lm: CompiledLM, reference: Reference, prompts: Prompts
) -> None:
    def fail(token: int) -> None:
        raise ValueError("no more")

    kept, failing = lm.submit(prompts[0], max_new_tokens=40), lm.submit(prompts[1], max_new_tokens=40, on_token=fail)
    cancelled = lm.submit(prompts[3], max_new_tokens=40)
    lm.step()
    cancelled.cancel()
    lm.run([kept, cancelled])
    assert kept.tokens == reference(prompts[0], 40)
    assert cancelled.reason == "cancelled"
    assert cancelled.tokens == reference(prompts[3], 40)[: len(cancelled.tokens)]
    assert failing.reason == "error"
    assert len(failing.tokens) == 1
    with pytest.raises(GaudiccError, match="ended with ValueError: no more"):
        lm.run([failing])


def test_a_request_cancelled_while_it_waits_never_runs(lm: CompiledLM, prompts: Prompts) -> None:
    requests = [lm.submit(prompts[0], max_new_tokens=5) for _ in range(5)]
    requests[4].cancel()
    before = lm.stats.requests
    lm.run()
    assert (requests[4].reason, requests[4].tokens) == ("cancelled", [])
    assert lm.stats.requests == before + 4


def test_a_session_reads_only_what_is_new(lm: CompiledLM, reference: Reference, prompts: Prompts) -> None:
    with lm.session() as session:
        first = session.generate(prompts[0], max_new_tokens=8)
        other = lm.submit(prompts[4], max_new_tokens=10)  # takes a slot beside the session's
        second = list(session.stream(prompts[1], max_new_tokens=9))
        third = session.generate(prompts[2], max_new_tokens=3)
        lm.run()
    assert first == reference(prompts[0], 8)
    assert other.tokens == reference(prompts[4], 10)
    history = prompts[0] + first + prompts[1]
    assert second == reference(history, 9)
    history += second + prompts[2]
    assert third == reference(history, 3)
    assert session.tokens == history + third


def test_a_session_takes_one_turn_at_a_time(lm: CompiledLM, prompts: Prompts) -> None:
    with lm.session() as session:
        stream = session.stream(prompts[0], max_new_tokens=30)
        next(iter(stream))
        with pytest.raises(StateError, match="has not ended"):
            session.generate(prompts[1])
    assert not lm.step()


def test_sessions_that_hold_every_slot_are_said(lm: CompiledLM, reference: Reference, prompts: Prompts) -> None:
    sessions = [lm.session() for _ in range(4)]
    for session in sessions:
        session.generate(prompts[2], max_new_tokens=2)
    stuck = lm.submit(prompts[0], max_new_tokens=3)
    with pytest.raises(StateError, match="every slot is held by a session"):
        lm.run([stuck])
    assert sessions[0].generate(prompts[0], max_new_tokens=3)  # the sessions themselves go on
    for session in sessions:
        session.close()
    again = lm.submit(prompts[0], max_new_tokens=3)
    lm.run([again])
    assert again.tokens == reference(prompts[0], 3)


def test_what_cannot_be_recorded_ends_only_what_it_was_for(
    lm: CompiledLM, monkeypatch: pytest.MonkeyPatch, reference: Reference, prompts: Prompts
) -> None:
    going = lm.submit(prompts[0], max_new_tokens=20)
    lm.step()

    def refuse(*_: Any, **__: Any) -> None:
        raise LoweringError("no such graph")

    failing = lm.submit(prompts[1], max_new_tokens=5)
    with monkeypatch.context() as patched:
        patched.setattr(lm._graphs, "prefill", refuse)
        lm.step()
    assert failing.reason == "error"
    assert isinstance(failing.error, LoweringError)
    lm.run([going])
    assert going.tokens == reference(prompts[0], 20)


def test_an_interrupted_generate_leaves_nothing_behind(
    lm: CompiledLM, monkeypatch: pytest.MonkeyPatch, reference: Reference, prompts: Prompts
) -> None:
    going = lm.submit(prompts[0], max_new_tokens=30)
    decode = lm._graphs.decode

    def interrupt(*args: Any, **how: Any) -> Any:
        step, calls = decode(*args, **how), iter(range(3))

        def run() -> torch.Tensor:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return step()

        return run

    with monkeypatch.context() as patched:
        patched.setattr(lm._graphs, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            lm.generate(torch.tensor([prompts[1]]), max_new_tokens=30)
    lm.run([going])
    assert going.tokens == reference(prompts[0], 30)
    assert not lm.step()


def test_nothing_is_recorded_after_warm_up(llama: Any, prompts: Prompts) -> None:
    import gaudicc

    lm = gaudicc.compile_lm(llama, max_batch=2, max_context=40)
    seen: list[str] = []
    lm.warm_up(progress=lambda kind, bucket: seen.append(f"{kind} {bucket}"))
    records = lm.stats.records
    assert records == len(seen) == sum(map(len, lm.buckets.values()))
    for prompt in prompts:
        lm.submit(prompt, max_new_tokens=10)
    lm.run()
    assert lm.stats.records == records

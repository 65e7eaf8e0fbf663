"""LM inference: a conversation, whose keys and values stay in its slot between turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from gaudicc.errors import StateError
from gaudicc.lm.request import Request
from gaudicc.lm.scheduler import Scheduler


class Session:
    """One conversation. Each turn reads only what is new; the slot is held until `close`, or the end of a `with`.

    Args:
        scheduler: runs its turns, beside the requests of others.
        make: prompt ids and options -> a checked request.
        rereads: each turn reads the whole conversation. What a recurrence carries cannot be gone on from with several tokens at
            once: the models' own Python starts from nothing or takes one token.

    Attributes:
        tokens: everything so far, prompts and answers.
    """

    def __init__(
        self, scheduler: Scheduler, make: Callable[[Sequence[int], dict[str, Any]], Request], *, rereads: bool = False
    ) -> None:
        self.tokens: list[int] = []
        self._scheduler, self._make, self._rereads = scheduler, make, rereads
        self._kept = 0
        self._slot: int | None = None
        self._last: Request | None = None

    def stream(self, prompt: Sequence[int] | Tensor, **how: Any) -> Iterator[int]:
        """Yields the tokens of the next turn's answer as they come. Leaving the loop cancels the rest of it.

        Args:
            prompt: what is new.
            **how: fields of `GenerationOptions`.

        Raises:
            StateError: the turn before has not ended.
        """
        return self._scheduler.follow(self._submit(prompt, how))

    def generate(self, prompt: Sequence[int] | Tensor, **how: Any) -> list[int]:
        """The tokens of the next turn's answer; as `stream`."""
        request = self._submit(prompt, how)
        self._scheduler.run([request])
        return request.tokens

    def close(self) -> None:
        """Gives the slot back; a turn that has not ended is cancelled."""
        if self._last is not None:
            self._scheduler.cancel(self._last)
        self._settle()
        if self._slot is not None:
            self._scheduler.release(self._slot)
        self._slot, self._kept = None, 0

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, prompt: Sequence[int] | Tensor, how: dict[str, Any]) -> Request:
        self._settle()
        new = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
        request = self._make([*self.tokens[self._kept :], *new], how)
        request.kept, request.keep, request.slot = self._kept, True, self._slot
        self._scheduler.enqueue([request])
        self.tokens.extend(new)
        self._last = request
        return request

    def _settle(self) -> None:
        """Takes over what the last turn left: its tokens, its slot, and how much of it is in the cache."""
        last = self._last
        if last is None:
            return
        if not last.done:
            raise StateError("the turn before has not ended", hint="read its tokens to the end, or close the session")
        self.tokens.extend(last.tokens)
        self._slot, self._last = last.slot, None
        if last.tokens and not self._rereads:
            self._kept = last.position

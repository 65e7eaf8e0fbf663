"""`gaudicc generate`: prompts -> their continuations, streamed as they come."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from gaudicc.cli.options_lm import GenerateOptions
from gaudicc.cli.output import print_json, say
from gaudicc.errors import InputError, ModelFileError
from gaudicc.lm import CompiledLM, Request, compile_lm
from gaudicc.models import cuda_style_llm
from gaudicc.models.transformers_models import build

STACK = "cuda-style-llm"


def run(options: GenerateOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.

    Raises:
        GaudiccError: the model cannot be found or compiled, or a prompt does not fit.
    """
    model = cuda_style_llm.build("small") if options.model == STACK else build(options.model, task="causal")
    tokenizer = _tokenizer(Path(options.model))
    prompts = [_ids(prompt, tokenizer) for prompt in options.prompt]
    needed = max(map(len, prompts), default=0) + options.max_new_tokens
    lm = compile_lm(
        model,
        max_batch=len(prompts),
        max_context=options.max_context or max(needed, 2),
        chunk=options.chunk,
        target=options.target,
    )
    how: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "do_sample": options.sample,
        "temperature": options.temperature,
        "top_k": options.top_k or None,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repetition_penalty": options.repetition_penalty,
    }
    started = time.perf_counter()
    requests = [lm.submit(prompt, seed=options.seed + i, **how) for i, prompt in enumerate(prompts)]
    _follow(lm, requests, tokenizer, quiet=options.json)
    seconds = time.perf_counter() - started
    _report(options, lm, requests, tokenizer, seconds)
    return 0


def _tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, or None where there is none."""
    if not (folder / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelFileError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def _ids(prompt: str, tokenizer: Any) -> list[int]:
    if tokenizer is not None:
        ids: list[int] = tokenizer(prompt)["input_ids"]
        return ids
    words = re.split(r"[\s,]+", prompt.strip())
    if not all(re.fullmatch(r"\d+", word) for word in words):
        raise InputError(
            f"{prompt!r} is no list of token ids, and the model has no tokenizer",
            hint='give ids: --prompt "12 7 9", or a folder with a tokenizer',
        )
    return [int(word) for word in words]


def _follow(lm: CompiledLM, requests: list[Request], tokenizer: Any, *, quiet: bool) -> None:
    """Runs to the end; a single prompt's text is printed as it comes, several are printed when all are done."""
    shown = 0
    left = True
    while left:
        left = lm.step()
        if quiet or len(requests) > 1:
            continue
        text = _text(requests[0].tokens, tokenizer)
        print(text[shown:], end="", flush=True)
        shown = len(text)
    if quiet:
        return
    if len(requests) == 1:
        print()
    else:
        for request in requests:
            print(_text(request.tokens, tokenizer))


def _text(tokens: list[int], tokenizer: Any) -> str:
    return " ".join(map(str, tokens)) if tokenizer is None else str(tokenizer.decode(tokens))


def _report(options: GenerateOptions, lm: CompiledLM, requests: list[Request], tokenizer: Any, seconds: float) -> None:
    buckets = {name: [str(bucket) for bucket in used] for name, used in lm.buckets.items()}
    count = sum(len(request.tokens) for request in requests)
    if options.json:
        print_json(
            {
                "model": options.model,
                "answers": [
                    {"tokens": r.tokens, "text": _text(r.tokens, tokenizer) if tokenizer else None, "reason": r.reason}
                    for r in requests
                ],
                "seconds": seconds,
                "tokens_per_second": count / seconds,
                "buckets": buckets,
                "records": lm.stats.records,
                "replays": lm.stats.replays,
                "host_reads": lm.stats.host_reads,
            }
        )
        return
    say(f"{count} tokens in {seconds:.2f} s, {count / seconds:.1f} tokens/s, compiling included")
    for name, used in buckets.items():
        say(f"recorded {name}: {'; '.join(used)}")
    for note in lm.notes:
        say(f"note: {note}")

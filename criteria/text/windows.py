"""Token windows: what calibration, validation and training read."""

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from criteria.text.sampled.settings import SampledJson
from experts.arguments import check_kind
from experts.arrays import Ids, Marks
from experts.errors import ExciseError

if TYPE_CHECKING:
    import torch


class TextJson(TypedDict):
    """What a result says of the windows it was made on."""

    windows: int  # N
    length: int  # tokens per window, W
    documents: int  # how many the windows were cut from
    domains: list[str]  # labels of the sources
    hash: str  # identity of the tokens
    sampled: NotRequired[list[SampledJson]]  # of windows that a model wrote: how


@dataclass(frozen=True)
class Windows:
    """N windows of W tokens.

    Attributes:
        tokens: token ids [N, W]
        mask: False on padding [N, W]
        document: which of `documents` each window is from [N]
        domain: which of `domains` each window is from [N]
        documents: their names
        domains: labels of the sources
        sampled: how windows were drawn that a model wrote itself
    """

    tokens: Ids
    mask: Marks
    document: Ids
    domain: Ids
    documents: tuple[str, ...]
    domains: tuple[str, ...]
    sampled: tuple[SampledJson, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def hash(self) -> str:
        """Identity of the content: tokens, padding and domains."""
        parts = (self.tokens, self.mask, self.domain)
        content = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def readable(self) -> Marks:
        """Positions with a next token: neither of the two is padding [N, W − 1]."""
        marks: Marks = self.mask[:, 1:] & self.mask[:, :-1]
        return marks

    def select(self, rows: Ids) -> "Windows":
        """Return the windows of these rows, in their order."""
        return replace(
            self,
            tokens=self.tokens[rows],
            mask=self.mask[rows],
            document=self.document[rows],
            domain=self.domain[rows],
        )

    def spread(self, count: int) -> Ids:
        """Return the row numbers of `count` evenly spread windows; fewer where there are not so many."""
        places = np.linspace(0, len(self) - 1, count)
        return np.unique(places.round().astype(np.int64))

    def halves(self) -> "tuple[Windows, Windows]":
        """Deal the windows in turns, domain by domain: text to fit to, and text to judge that by."""
        order = np.argsort(self.domain, kind="stable")
        return self.select(np.sort(order[::2])), self.select(np.sort(order[1::2]))

    def tensor(self, device: "torch.device | str") -> "torch.Tensor":
        """Return the token ids as a tensor on a device: int64 [N, W]."""
        import torch  # here, because windows are cut and checked without it

        return torch.from_numpy(self.tokens).to(device)

    def padding(self, device: "torch.device | str") -> "torch.Tensor | None":
        """Return the attention mask on a device, 0 on padding: int64 [N, W]; None where nothing is padded."""
        import torch

        return None if self.mask.all() else torch.from_numpy(self.mask).to(device).long()

    def summary(self) -> TextJson:
        """Return what reports say of this text."""
        rows, length = self.tokens.shape
        summary: TextJson = {
            "windows": rows,
            "length": length,
            "documents": len(np.unique(self.document)),
            "domains": list(self.domains),
            "hash": self.hash,
        }
        if self.sampled:
            summary["sampled"] = list(self.sampled)
        return summary


def check_windows(name: str, text: object) -> None:
    """Refuse what are no windows, where a caller of the public functions passes text."""
    check_kind(name, text, Windows, "token windows of criteria.windows")


def check_held_out(name: str, text: object) -> None:
    """The same for text that something is tested on: it has to be real.

    Raises:
        ExciseError: no windows, or some of them were written by a model itself.
    """
    check_windows(name, text)
    if isinstance(text, Windows) and text.sampled:
        raise ExciseError(
            f"{name}: some of its windows were sampled from a model; a model judged by its own samples says "
            "nothing of real text: take criteria.windows"
        )

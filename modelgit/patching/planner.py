"""What a tensor may be coded with and against: candidates for a base, estimates from samples, corrections of a base.

Nothing is written here, and of large tensors little is read.  What makes reading too costly is left out (see `chain`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelgit.codecs.base import Codec, Effort, Layout, Words, layout_of, word_dtype
from modelgit.numerics.scratch import scratch
from modelgit.objects import BlobId, TensorId
from modelgit.patching.base import TensorReads
from modelgit.patching.chain import MAX_DENSE_COST, MAX_SPARSE_COST, SPARSE_BELOW, anchor_of, chain_cost
from modelgit.patching.choose import SPARSE_CODECS, Choice, estimate_choices, sample_runs
from modelgit.patching.correct import Product, ReadBytes, find_correction, is_correctable
from modelgit.patching.jobs import StoreJob
from modelgit.patching.positions import PositionReads, Section, bind, is_maskable
from modelgit.patching.records import sections_of
from modelgit.patching.samples import read_sample
from modelgit.store.base import ObjectStore

__all__ = ["BYTES_LAYOUT", "Ids", "Planner", "Weighed", "buffer", "job_layout"]

BYTES_LAYOUT = Layout(1, False)
_CORRECT_ABOVE = 0.05  # records below this share of the raw size gain too little from a correction to look for one
_MOST_MASKS = 4

Ids = TensorId | BlobId


class Weighed(NamedTuple):
    """An encoding that was thought of: its estimate, its base, and whether reading costs no more than is allowed."""

    choice: Choice
    base: Ids | None
    is_admissible: bool


class Planner:
    """Finds out how jobs may be coded.  Thread-safe.

    Bases are read through `reader`; `products` gives, by the name of a tensor, what is declared to have been added to
    its parent.
    """

    def __init__(
        self,
        store: ObjectStore,
        reader: TensorReads,
        *,
        effort: Effort = "balanced",
        products: Callable[[str], Product | None] | None = None,
    ) -> None:
        self._store = store
        self._reader = reader
        self._effort: Effort = effort
        self._products = products
        self._positions = PositionReads(reader)

    def bases(self, job: StoreJob) -> list[Ids]:
        """Candidates: the tensor in the parent, the whole one at the end of its chain (see `chain`), those named."""
        if job.size == 0:
            return []
        bases: list[Ids] = []
        if job.parent is not None and self._reader.size(job.parent):
            bases.append(job.parent)
            anchor = anchor_of(self._store, job.parent)
            if anchor is not None and anchor != job.parent:
                bases.append(anchor)
        return bases + [base for base in job.bases if base not in bases and self._reader.size(base)]

    def sections(self, job: StoreJob, bases: Sequence[Ids]) -> list[Section]:
        """Positions that a job's words may be stored at: those that it names, and those of its bases' records."""
        if job.spec is None or not bases or not is_maskable(job.spec):
            return []
        found = dict.fromkeys(job.masks)
        for base in bases:
            if self._reader.size(base) == job.size:  # else they are positions in something else
                found.update(dict.fromkeys(sections_of(self._store, base)))
        return [section for section in found if self._reader.size(section.blob)][:_MOST_MASKS]

    def mask(self, codec: Codec, section: Section | None, job: StoreJob, start: int, stop: int) -> Codec:
        """`codec` for the words `start` to `stop` of a job, with the positions that `section` has there."""
        return bind(codec, self._positions, section, job.size // job_layout(job).word_bytes, start, stop)

    def read_base(self, base: Ids, start: int, stop: int, layout: Layout, name: str) -> Words:
        """Words of a base, which goes on with zeros beyond its end, in this thread's buffer of that name."""
        words, data = buffer(name, stop - start, layout)
        known = max(start, min(stop, self._reader.size(base) or 0)) - start
        if known:
            self._reader.read_into(base, start, data[:known])
        words[known // layout.word_bytes :] = 0
        return words

    def sample(self, job: StoreJob, bases: Sequence[Ids], layout: Layout) -> tuple[Words, list[Callable[[], Words]]]:
        """The words of a few runs of the job's source, and what reads the same runs of each base when it is asked."""
        runs = sample_runs(job.size // layout.word_bytes)

        def base_sample(base: Ids) -> Callable[[], Words]:
            return lambda: read_sample(
                lambda start, stop: self.read_base(base, start, stop, layout, "encode.base").data,
                runs,
                layout,
                self._reader.grain(base),
            )

        sample = read_sample(job.source.read, runs, layout, job.source.step_bytes)
        return sample, [base_sample(base) for base in bases]

    def choices(
        self,
        job: StoreJob,
        sample: Words,
        readers: Sequence[Callable[[], Words]],
        bases: Sequence[Ids],
        sections: Sequence[Section],
    ) -> list[Choice]:
        """What is open for a sample of a job and those of its bases, cheapest first: never empty."""
        return self._admissible(self._estimated(job, sample, readers, sections), bases, job_layout(job))

    def _estimated(
        self, job: StoreJob, sample: Words, readers: Sequence[Callable[[], Words]], sections: Sequence[Section]
    ) -> list[Choice]:
        layout = job_layout(job)
        masks = [self._sampled(section, job.size // layout.word_bytes) for section in sections]
        return estimate_choices(sample, readers, layout, masks=masks, effort=self._effort)

    def _sampled(self, section: Section, words: int) -> NDArray[np.intp]:
        """The places in a sample of so many words that a mask names."""
        found = []
        filled = 0
        for start, stop in sample_runs(words):
            found.append(self._positions.places(section, words, start, stop).astype(np.intp) + filled)
            filled += stop - start
        return np.concatenate(found)

    def weigh(self, job: StoreJob) -> list[Weighed]:
        """The encodings that a job would be chosen from if it were stored now, cheapest first.  Reads samples only."""
        layout = job_layout(job)
        bases = self.bases(job)
        sample, readers = self.sample(job, bases, layout)
        choices = self._estimated(job, sample, readers, self.sections(job, bases))
        admissible = self._admissible(choices, bases, layout)
        return [
            Weighed(choice, None if choice.base is None else bases[choice.base], choice in admissible)
            for choice in choices
        ]

    def correct(
        self,
        job: StoreJob,
        choice: Choice,
        bases: Sequence[Ids],
        read: ReadBytes,
        read_base: Callable[[int, int, int], memoryview],
        *,
        extent_bytes: int,
    ) -> tuple[Choice, Sequence[bytes]] | None:
        """What is to be done instead of `choice` if the tensor is a base plus a product of small rank."""
        spec, index = job.spec, choice.base or 0
        if spec is None or not bases or not is_correctable(spec):
            return None
        product = None if self._products is None else self._products(job.name)
        if product is None and choice.bits < _CORRECT_ABOVE * 8 * layout_of(spec).word_bytes:
            return None
        if chain_cost(self._store, bases[index]) + 1.0 > MAX_DENSE_COST:
            return None
        found = find_correction(
            read,
            lambda start, stop: read_base(index, start, stop),
            spec,
            product=product,
            plain_bits=choice.bits,
            effort=self._effort,
            extent_bytes=extent_bytes,
        )
        return None if found is None else (Choice(found.codec, index, found.bits), found.preludes)

    def _admissible(self, choices: list[Choice], bases: Sequence[Ids], layout: Layout) -> list[Choice]:
        """Leave out what would make reading too costly."""
        costs = [chain_cost(self._store, base) for base in bases]
        kept = []
        for choice in choices:
            if choice.base is not None:
                cost = costs[choice.base]
                # A sparse record of most values is read like a dense one, and must not chain like a small patch.
                is_dense = choice.codec not in SPARSE_CODECS or choice.bits > SPARSE_BELOW * 8 * layout.word_bytes
                if cost + 1.0 > MAX_DENSE_COST if is_dense else cost > MAX_SPARSE_COST:
                    continue
            kept.append(choice)
        return kept


def buffer(name: str, size_bytes: int, layout: Layout) -> tuple[Words, memoryview]:
    """This thread's buffer of that name, as words and as bytes."""
    words = scratch(name, size_bytes // layout.word_bytes, word_dtype(layout))
    return words, words.view(np.uint8).data


def job_layout(job: StoreJob) -> Layout:
    """The words that a job is coded as; a blob is bytes."""
    return BYTES_LAYOUT if job.spec is None else layout_of(job.spec)

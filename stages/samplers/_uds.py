"""Nuclear norm and random sketch of a row's logits, without its logits.

Z [L, V] are the raw logits of a row, X [L, d] its final hidden states, W [V, d] the output matrix
and c the scale, so that Z = c X W' (a bias is one more column of W, and of ones in X).

    norm      |Z|_* = |c X R|_*              with R R' = W'W, [d, d]
    sketch    s = P (c X C)                  with C = W' Q, [d, d1], flattened to [d2 d1]

    Q[v, k] = e_v sqrt(2 / d1) cos(2 pi v j_k / V)
    P[k, t] = f_t sqrt(2 / d2) cos(2 pi t i_k / T)

e and f are random signs, j and i random frequencies, all drawn once. The sketch is linear in Z and
E |s|^2 = |Z|_F^2 (but for the frequencies that a small V repeats), so distances of sketches are
Frobenius distances of logits. R and C are made once for each output matrix; nothing of size V is
touched afterwards. Positions from T on take the frequencies round again with signs of their own:
no row is cut and none refused.

W'W and the L x L (or d x d) matrix of inner products are summed in float64. The square root of an
eigenvalue then errs by at most sqrt(2^-53) = 1e-8 of the largest singular value, less than float32
hidden states carry; in float32 the same way would err by 3e-4. The sketch, of which nothing but
distances is asked, is float32, and so is Q, which is kept where the vocabulary is not too large.
Rows of equal length go together.

Where the output layer is not known, or caps its logits, the same two things are summed over tiles
of the logits. Cost of a row: O(L^2 d + L^3 + L d (d + d1)); of a new matrix O(V d (d + d1)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from foresift.pipeline.lm.head import Head
from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.rng import Rng

#: columns of the vocabulary that are handled together
TILE = 8192
#: positions whose signs are drawn; longer rows take them round again
POSITIONS = 65536
#: entries of the output matrix that are compared to see whether it was trained
PROBES = 1024
WIDE = torch.float64
#: Q is kept between output matrices where it takes no more than this
KEPT_BYTES = 256 << 20
#: what was drawn for a sketch, as a checkpoint keeps it
SIGNS = ("token_signs", "position_signs", "token_frequencies", "position_frequencies")


@dataclass(frozen=True, eq=False)
class Masks:
    """The random signs and frequencies of a sketch."""

    vocabulary: int
    length: int
    """T, the period of the position frequencies."""
    token_signs: torch.Tensor
    """[V] int8."""
    position_signs: torch.Tensor
    """[POSITIONS] int8."""
    token_frequencies: torch.Tensor
    """[d1] int64."""
    position_frequencies: torch.Tensor
    """[d2] int64."""
    released: bool
    """Whether frequencies were drawn with repetition from the whole spectrum."""

    @classmethod
    def draw(
        cls, rng: Rng, vocabulary: int, length: int, sizes: tuple[int, int], released: bool
    ) -> Masks:
        """Signs and frequencies from the seed alone; `sizes` = (d1, d2)."""

        def signs(name: str, count: int) -> torch.Tensor:
            drawn = rng.at(name, "signs").generator().integers(0, 2, count)
            return torch.from_numpy((2 * drawn - 1).astype(np.int8))

        def frequencies(name: str, size: int, count: int) -> torch.Tensor:
            generator = rng.at(name, "frequencies").generator()
            if released:
                return torch.from_numpy(generator.integers(0, size, count))
            # cos is even: frequency j and size - j give the same numbers
            distinct = size // 2 + 1
            return torch.from_numpy(generator.permutation(distinct)[: min(count, distinct)])

        return cls(
            vocabulary,
            length,
            signs("tokens", vocabulary),
            signs("positions", POSITIONS),
            frequencies("tokens", vocabulary, sizes[0]),
            frequencies("positions", length, sizes[1]),
            released,
        )

    def having(self, drawn: Mapping[str, torch.Tensor]) -> Masks:
        """With other signs and frequencies."""
        return Masks(self.vocabulary, self.length, released=self.released, **drawn)

    @property
    def width(self) -> int:
        """Numbers in a sketch."""
        return len(self.token_frequencies) * len(self.position_frequencies)

    def right(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """[stop - start, d1] rows of Q."""
        tokens = torch.arange(start, stop, device=device)
        waves = self._waves(self.token_frequencies.to(device), self.vocabulary, tokens)
        return waves.mul_(self.token_signs[start:stop].to(device)[:, None])

    def left(self, rows: int, device: torch.device) -> torch.Tensor:
        """[d2, rows] columns of P."""
        places = torch.arange(rows, device=device)
        waves = self._waves(self.position_frequencies.to(device), self.length, places)
        return waves.mul_(self.position_signs.to(device)[places % POSITIONS][:, None]).T

    def _waves(self, frequencies: torch.Tensor, size: int, places: torch.Tensor) -> torch.Tensor:
        turns = torch.outer(places, frequencies) % size
        angles = torch.arange(size, device=turns.device).to(WIDE) * (2 * math.pi / size)
        waves = torch.cos(angles).take(turns)  # few different ones: looked up, not computed again
        waves.mul_(math.sqrt(2 / len(frequencies)))
        if not self.released:  # the two that are their own mirror image have twice the energy
            waves[:, (frequencies == 0) | (2 * frequencies == size)] /= math.sqrt(2)
        return waves.float()


#: (start, stop, device) -> rows of Q
Right = Callable[[int, int, torch.device], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Factors:
    """What stands for an output matrix."""

    root: torch.Tensor
    """[d, d] c R."""
    right: torch.Tensor
    """[d, d1] c C."""

    @classmethod
    def of(cls, head: Head, masks: Masks, right_of: Right | None = None) -> Factors:
        """Both from one pass over the vocabulary; `right_of` gives rows of Q that are kept."""
        right_of = right_of or masks.right
        width = head.weight.shape[1] + (head.bias is not None)
        device = head.weight.device
        gram = torch.zeros(width, width, dtype=WIDE, device=device)
        right = torch.zeros(width, len(masks.token_frequencies), dtype=WIDE, device=device)
        for start in range(0, masks.vocabulary, TILE):
            stop = min(start + TILE, masks.vocabulary)
            tile = head.weight[start:stop].float()
            if head.bias is not None:
                tile = torch.cat([tile, head.bias[start:stop, None].float()], 1)
            right += tile.T @ right_of(start, stop, device)
            wide = tile.to(WIDE)
            gram.addmm_(wide.T, wide)
        return cls(head.scale * square_root(gram), (head.scale * right).float())


def square_root(gram: torch.Tensor) -> torch.Tensor:
    """R with R R' = gram; of a singular matrix too, and NaN of one that is not finite."""
    if not bool(gram.isfinite().all()):
        return torch.full_like(gram, torch.nan)
    root: torch.Tensor
    root, failed = torch.linalg.cholesky_ex(gram)
    if failed or not bool(root.isfinite().all()):
        values, vectors = torch.linalg.eigh(gram)
        root = vectors * values.clamp_min(0).sqrt()
    return root


def nuclear_norms(gram: torch.Tensor) -> torch.Tensor:
    """[n] sums of singular values of matrices Y, from [n, L, L] Y Y' (or Y'Y) in float64.

    NaN where a matrix is not finite (the model diverged).
    """
    finite = gram.isfinite().all(2).all(1)
    values = torch.linalg.eigvalsh(gram.where(finite[:, None, None], 0.0))
    sums: torch.Tensor = values.clamp_min(0).sqrt().sum(1)
    return sums.where(finite, torch.nan)


class Kernel:
    """The norms and sketches of the rows of a model in training."""

    def __init__(self, live: LiveModel, masks: Masks, rows: str) -> None:
        self.live, self.masks, self.rows = live, masks, rows
        self._factors: Factors | None = None
        self._right: dict[int, torch.Tensor] = {}
        self._made_of: tuple[int, int, torch.Tensor] | None = None

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """([b] |Z|_*, [b, d2 d1] s, [b] L) on the CPU; zeros where no position is taken."""
        source, logits = self._source(seen)
        places = [self._places(seen, i) for i in range(len(seen))]
        counts = torch.tensor([len(p) for p in places], dtype=torch.int64)
        norms = torch.zeros(len(seen), dtype=WIDE)
        sketches = torch.zeros(len(seen), self.masks.width, dtype=torch.float32)
        for count in sorted(set(counts[counts > 0].tolist())):
            rows = (counts == count).nonzero()[:, 0]
            at = torch.stack([places[i] for i in rows.tolist()]).to(source.device)
            part = source[rows.to(source.device)[:, None], at]
            norms[rows], sketches[rows] = self._group(part, logits)
        return norms, sketches, counts

    def _group(self, part: torch.Tensor, logits: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Norms and sketches of [n, L, d] hidden states, or [n, L, V] logits."""
        head = self.live.head
        if logits or (head is not None and head.softcap):
            gram, projected = self._tiled(part, None if logits else head)
        else:
            factors = self.factors()
            x = part.float()
            if len(factors.root) > x.shape[2]:
                x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
            y, projected = x.to(WIDE) @ factors.root, x @ factors.right
            gram = y @ y.mT if y.shape[1] <= y.shape[2] else y.mT @ y
        left = self.masks.left(part.shape[1], part.device)
        return nuclear_norms(gram).cpu(), (left @ projected).flatten(1).cpu()

    def _tiled(self, part: torch.Tensor, head: Head | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Z Z' and Z Q, summed over tiles of the logits."""
        n, length, _ = part.shape
        gram = part.new_zeros(n, length, length, dtype=WIDE)
        columns = len(self.masks.token_frequencies)
        projected = part.new_zeros(n, length, columns, dtype=torch.float32)
        for start, stop, tile in _tiles(part, head, self.masks.vocabulary):
            gram += tile @ tile.mT
            projected += tile.float() @ self.right(start, stop, part.device)
        return gram, projected

    def right(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """Rows of Q, which are the same for every output matrix: kept where they are few."""
        masks = self.masks
        if masks.vocabulary * len(masks.token_frequencies) * 4 > KEPT_BYTES:
            return masks.right(start, stop, device)
        if start not in self._right:
            self._right[start] = masks.right(start, stop, device)
        return self._right[start]

    def factors(self) -> Factors:
        """Those of the output matrix as it is now; made again when it was trained."""
        head = self.live.head
        assert head is not None
        rows = torch.arange(PROBES, device=head.weight.device) * 7919 % len(head.weight)
        probe = head.weight[rows, torch.arange(PROBES, device=rows.device) % head.weight.shape[1]]
        if head.bias is not None:
            probe = torch.cat([probe, head.bias[rows]])
        before = self._made_of
        now = (head.weight.data_ptr(), head.weight._version)
        if before is None or before[:2] != now or not torch.equal(before[2], probe):
            self._factors = Factors.of(head, self.masks, self.right)
            self._made_of = (*now, probe.clone())
        assert self._factors is not None
        return self._factors

    def _places(self, seen: Seen, row: int) -> torch.Tensor:
        """Positions of a row that are taken."""
        if self.rows == "all":
            return torch.arange(seen.candidates.input_ids.shape[1])
        if self.rows == "response":  # position t - 1 predicts token t
            return seen.counted[row].nonzero()[:, 0] - 1
        return torch.arange(int(seen.lengths[row]))

    def _source(self, seen: Seen) -> tuple[torch.Tensor, bool]:
        """([B, T, d] hidden states, False), or ([B, T, V] logits, True)."""
        live = self.live
        if self.rows != "all" and live.head is not None:
            assert seen.hidden is not None
            return seen.hidden, False
        with torch.no_grad(), live.scoring():
            if self.rows != "all":
                return live.logits(seen.ids), True
            batch = {
                "input_ids": seen.candidates.input_ids.to(live.device),
                "attention_mask": seen.candidates.attention_mask.to(live.device),
                "use_cache": False,
            }
            direct = live.head is None
            out = (live.model if direct else live.model.base_model)(**batch)
            return (out.logits if direct else out.last_hidden_state), direct


def _tiles(
    part: torch.Tensor, head: Head | None, vocabulary: int
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(start, stop, [n, L, stop - start] logits in float64)."""
    flat = part.flatten(0, 1)
    space = None if head is None else flat.new_empty(len(flat) * TILE, dtype=torch.float32)
    for start in range(0, vocabulary, TILE):
        stop = min(start + TILE, vocabulary)
        if head is None or space is None:
            yield start, stop, part[..., start:stop].to(WIDE)
        else:
            z = head.logits(flat, start, stop, space)
            yield start, stop, z.view(*part.shape[:2], stop - start).to(WIDE)

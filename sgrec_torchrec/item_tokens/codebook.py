"""The codebook, and the map item <-> semantic ID without collisions.

Shape letters: N items, n items of a chunk, L levels, K codes a level, k_l centroids
trained at level l (k_l <= K), D width of an embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.item_tokens.seats import (
    CHUNK_ROWS,
    prefix_ids,
    seat_within_parents,
    seats_below,
)
from sgrec_torchrec.schema import Float32Array, Int32Array, Int64Array, ItemTokens

LevelCost = Callable[[int, Int64Array, Int32Array], Float32Array]
"""(level, items [n], their codes so far [n, L]) -> cost of every code [n, K]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook:
    """Centroids of residual quantisation: item ~ sum over levels of one centroid.

    ``centroids[l]`` is [k_l, D] float32. Codes in [k_l, K) have no centroid: they
    decode to zero and are used only where all others of a parent are taken. A catalogue
    that came with its own semantic IDs has D = 0. Size: L K D floats, whatever N.
    """

    centroids: tuple[Float32Array, ...]
    num_codes: int

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.centroids)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.centroids[0].shape[1])

    def decode(self, codes_nl: Int32Array) -> Float32Array:
        """Sum of the centroids of the first l codes: [n, D] float32."""
        total_nD = np.zeros((len(codes_nl), self.dim), dtype=np.float32)
        for level in range(codes_nl.shape[1]):
            code_n = codes_nl[:, level]
            known = np.flatnonzero(code_n < len(self.centroids[level]))
            total_nD[known] += self.centroids[level][code_n[known]]
        return total_nD

    def cost(self, level: int, residual_nD: Float32Array) -> Float32Array:
        """Squared distance to every code of ``level``: [n, K] float32.

        A code without centroid costs more than any other, lower numbers less.
        """
        centroid_kD = self.centroids[level]
        cost_nK = np.empty((len(residual_nD), self.num_codes), dtype=np.float32)
        known_nk = residual_nD @ centroid_kD.T
        known_nk *= -2
        known_nk += (residual_nD**2).sum(axis=1, keepdims=True)
        known_nk += (centroid_kD**2).sum(axis=1)
        beyond = 1.0 + known_nk.max(initial=0.0)
        cost_nK[:, : known_nk.shape[1]] = known_nk
        cost_nK[:, known_nk.shape[1] :] = beyond
        return cost_nK

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        tensors = {f"level_{i}": c for i, c in enumerate(self.centroids)}
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, {"num_codes": str(self.num_codes)})

    @staticmethod
    def load(path: Path) -> "Codebook":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged or is no codebook.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no codebook {path}: build the item tokens first")
        try:
            with safe_open(path, framework="numpy") as file:
                num_codes = int((file.metadata() or {})["num_codes"])
                names = sorted(file.keys(), key=lambda name: int(name[6:]))
                centroids = tuple(file.get_tensor(name) for name in names)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged or is no codebook ({error}): build the item tokens "
                "again"
            ) from error
        return Codebook(centroids=centroids, num_codes=num_codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collisions:
    """What resolving cost."""

    colliding: int
    """Items that shared all codes with another one before."""
    moved_L: tuple[int, ...]
    """Items whose code changed at each level."""


def resolve_collisions(
    codes_NL: Int32Array, num_codes: int, cost_of: LevelCost
) -> tuple[ItemTokens, Collisions]:
    """Make all code rows distinct, moving as few and as high items as needed.

    Top down: a prefix of length l holds at most K^(L-l) items, so a parent never has
    more items than its codes can take, and at the last level every code has one
    seat. The best-fitting items keep their code; each other one takes the nearest free
    code of its parent. An upper level moves only where a parent is overfull.

    Args:
        codes_NL: int32 in [0, K), collisions allowed; not changed.
        num_codes: K.
        cost_of: cost of every code for chosen items, given their (new) prefix.

    Returns:
        Distinct codes, and what it cost. Deterministic; L sorts of N keys (about 1 s
        per 1e6 items) and K per moved item.

    Raises:
        ValueError: N > K^L: there are not enough codes.
    """
    num_items, num_levels = codes_NL.shape
    check_room(num_items, num_levels, num_codes)
    counts = np.bincount(prefix_ids(codes_NL, num_codes), minlength=1)
    new_NL = codes_NL.copy()
    moved = []
    for level in range(num_levels):

        def rows_of(items: Int64Array, level: int = level) -> Float32Array:
            return cost_of(level, items, new_NL[items])

        wanted_N = new_NL[:, level].copy()
        parent_N = prefix_ids(new_NL[:, :level], num_codes)
        seats = seats_below(num_codes, num_levels - 1 - level)
        fit_N = _fit_where_crowded(parent_N, wanted_N, seats, num_codes, rows_of)
        new_NL[:, level] = seat_within_parents(
            parent_N, wanted_N, fit_N, seats, num_codes, rows_of
        )
        moved.append(int((new_NL[:, level] != wanted_N).sum()))
    tokens = ItemTokens(codes_NL=new_NL, num_codes=num_codes)
    colliding = int(counts[counts > 1].sum())
    return tokens, Collisions(colliding=colliding, moved_L=tuple(moved))


def append_items(
    tokens: ItemTokens, codebook: Codebook, embedding_ND: Float32Array
) -> ItemTokens:
    """Codes for new items; no old item's codes change.

    Each new item takes, level by level, the nearest code under which there is still
    room, and at the last level the nearest free one.

    Args:
        tokens: the catalogue so far (or what is left of it).
        codebook: the one that made them.
        embedding_ND: float32, one row a new item, of the codebook's width; the same
            kind of embedding that the codebook was trained on.

    Returns:
        Old rows first, unchanged, then one row for each new item, in order. Time
        grows with L (old + new) log for the sorts and with K D per new item.

    Raises:
        ValueError: width differs, a value is not finite, or no codes are left.
    """
    if embedding_ND.ndim != 2 or embedding_ND.shape[1] != codebook.dim:
        raise ValueError(
            f"new items' embeddings have shape {embedding_ND.shape}, the codebook "
            f"wants [n, {codebook.dim}]: make them as those of the old items"
        )
    check_finite(embedding_ND)
    num_old, num_new = tokens.num_items, len(embedding_ND)
    check_room(num_old + num_new, tokens.num_levels, tokens.num_codes)
    new_codes = np.zeros((num_new, tokens.num_levels), dtype=np.int32)
    codes_NL = np.concatenate([tokens.codes_NL, new_codes])
    for level in range(tokens.num_levels):

        def rows_of(items: Int64Array, level: int = level) -> Float32Array:
            prefix = codes_NL[num_old + items, :level]
            residual = embedding_ND[items] - codebook.decode(prefix)
            return codebook.cost(level, residual)

        parent_N = prefix_ids(codes_NL[:, :level], tokens.num_codes)
        wanted_n, fit_n = _cheapest(num_new, rows_of)
        codes_NL[num_old:, level] = seat_within_parents(
            parent_N[num_old:],
            wanted_n,
            fit_n,
            seats_below(tokens.num_codes, tokens.num_levels - 1 - level),
            tokens.num_codes,
            rows_of,
            parent_N[:num_old] * tokens.num_codes + tokens.codes_NL[:, level],
        )
    return ItemTokens(codes_NL=codes_NL, num_codes=tokens.num_codes)


def tokens_from_sid(
    sid_NL: Int32Array, num_levels: int, num_codes: int, item_ids: Sequence[str]
) -> tuple[ItemTokens, Collisions]:
    """The user's own semantic IDs, made collision-free.

    Of items that share a row the first keeps it; each other one takes the free code
    whose number is nearest, for nothing is known of what a code means.

    Raises:
        ValueError: naming the first item with a wrong number of codes or a code outside
            [0, num_codes).
    """
    if sid_NL.ndim != 2 or sid_NL.shape != (len(item_ids), num_levels):
        first = item_ids[min(len(sid_NL), len(item_ids) - 1)] if item_ids else "?"
        raise ValueError(
            f"items.parquet, column sid: shape {sid_NL.shape}, wanted "
            f"({len(item_ids)}, {num_levels}) (first item concerned: {first!r}); give "
            "every item one code a level, or set tokens.num_levels"
        )
    bad = np.argwhere((sid_NL < 0) | (sid_NL >= num_codes))
    if len(bad):
        item, level = bad[0]
        raise ValueError(
            f"items.parquet, column sid, row {item} (item {item_ids[item]!r}): code "
            f"{sid_NL[item, level]} at level {level} is outside [0, {num_codes}); mend "
            "it, or raise tokens.num_codes"
        )

    def cost_of(level: int, items: Int64Array, _: Int32Array) -> Float32Array:
        wanted_n1 = sid_NL[items, level][:, None]
        cost_nK: Float32Array = np.abs(
            np.arange(num_codes) - wanted_n1, dtype=np.float32
        )
        return cost_nK

    return resolve_collisions(sid_NL.astype(np.int32), num_codes, cost_of)


def cost_from(codebook: Codebook, embedding_ND: Float32Array) -> LevelCost:
    """Distance of an item's residual, after its earlier codes, to every centroid."""

    def cost_of(level: int, items: Int64Array, codes_nL: Int32Array) -> Float32Array:
        prefix_nD = codebook.decode(codes_nL[:, :level])
        residual_nD: Float32Array = embedding_ND[items] - prefix_nD
        return codebook.cost(level, residual_nD)

    return cost_of


def check_room(num_items: int, num_levels: int, num_codes: int) -> None:
    """Raise ValueError where N items cannot have N distinct rows of codes."""
    if num_items > num_codes**num_levels:
        raise ValueError(
            f"{num_items} items do not fit {num_codes}^{num_levels} = "
            f"{num_codes**num_levels} semantic IDs: raise tokens.num_codes or "
            "tokens.num_levels"
        )


def check_finite(embedding_ND: Float32Array) -> None:
    """Raise ValueError naming the first row that holds NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(embedding_ND).all(axis=1))
    if len(bad):
        raise ValueError(
            f"embedding of item {bad[0]} holds NaN or infinity ({len(bad)} such "
            "items): mend the embedding column"
        )


def _cheapest(
    num_items: int, rows_of: Callable[[Int64Array], Float32Array]
) -> tuple[Int32Array, Float32Array]:
    code_n = np.zeros(num_items, dtype=np.int32)
    fit_n = np.zeros(num_items, dtype=np.float32)
    for start in range(0, num_items, CHUNK_ROWS):
        items = np.arange(start, min(start + CHUNK_ROWS, num_items))
        cost_nK = rows_of(items)
        code_n[items] = cost_nK.argmin(axis=1)
        fit_n[items] = cost_nK.min(axis=1)
    return code_n, fit_n


def _fit_where_crowded(
    parent_N: Int64Array,
    code_N: Int32Array,
    seats: int,
    num_codes: int,
    rows_of: Callable[[Int64Array], Float32Array],
) -> Float32Array:
    """Cost of each item's code, worked out only where its code has too few seats."""
    fit_N = np.zeros(len(code_N), dtype=np.float32)
    slot_N = np.unique(parent_N * num_codes + code_N, return_inverse=True)[1]
    crowded = np.flatnonzero(np.bincount(slot_N, minlength=1)[slot_N] > seats)
    for start in range(0, len(crowded), CHUNK_ROWS):
        items = crowded[start : start + CHUNK_ROWS]
        cost_nK = rows_of(items)
        fit_N[items] = cost_nK[np.arange(len(items)), code_N[items]]
    return fit_N

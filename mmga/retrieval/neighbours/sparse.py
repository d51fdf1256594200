"""Sparse matrices of distances for other libraries."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.ops import k_reciprocal as ops

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix


def to_torch(matrix: ops.CsrRows, width: int | None = None) -> Tensor:
    """Return sparse rows as torch's CSR, with int32 indices where these suffice.

    Args:
        matrix: [N, width].
        width: columns; N if None.
    """
    count = len(matrix.offsets) - 1
    wide = torch.int64 if len(matrix.values) > torch.iinfo(torch.int32).max else torch.int32
    with warnings.catch_warnings():
        # torch says once that its sparse CSR tensors are in beta, which is no news to the caller.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            matrix.offsets.to(wide),
            matrix.columns.to(wide),
            matrix.values,
            (count, count if width is None else width),
            check_invariants=False,
            device=matrix.values.device,
        )


def to_scipy(matrix: Tensor, *, by_distance: bool = False) -> csr_matrix:
    """Return a torch sparse CSR matrix as SciPy's, which shares its memory.

    Stored zeros stay stored, columns ascend within a row. SciPy's arithmetic takes what is not
    stored as 0, which here is far, and drops zeros, which here are duplicates: combine overlaps
    (1 - distance) instead of distances.

    Args:
        matrix: torch sparse CSR on the CPU, as `jaccard_distance` gives it.
        by_distance: order each row by distance, then column, in a copy: the order in which
            scikit-learn's estimators take neighbour graphs without a warning. Its HDBSCAN puts
            columns in ascending order again, in place, and so does SciPy's `sort_indices`.

    Raises:
        UserError: it is no such matrix, or SciPy is not installed.
    """
    try:
        from scipy.sparse import csr_matrix
    except ImportError as error:
        raise UserError("SciPy is not installed: pip install 'mmga[mat]'") from error
    check_sparse(matrix)
    parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    values, columns, offsets = (part.numpy() for part in parts)
    if by_distance:
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        order = np.lexsort((values, rows))
        values, columns = values[order], columns[order]
    return csr_matrix((values, columns, offsets), shape=tuple(matrix.shape))


def to_dense(matrix: Tensor, absent: float = 1.0) -> NDArray[np.float64]:
    """Return sparse distances as an array of all pairs, [N, N], in a memory of its own.

    It takes 8 N^2 bytes: 3.2 GB for 20,000 items.

    Args:
        matrix: torch sparse CSR, as `jaccard_distance` gives it.
        absent: distance of what is not stored. Where `max_distance` left something out, 1 is an
            upper bound of it.

    Raises:
        UserError: it is no such matrix.
    """
    check_sparse(matrix)
    rows = np.repeat(np.arange(matrix.shape[0]), matrix.crow_indices().diff().cpu().numpy())
    dense = np.full(tuple(matrix.shape), absent)
    dense[rows, matrix.col_indices().cpu().numpy()] = matrix.values().cpu().numpy()
    return dense


def check_sparse(matrix: Tensor) -> None:
    """Raise a `UserError` unless a matrix is a torch sparse CSR tensor."""
    if not isinstance(matrix, Tensor) or matrix.layout != torch.sparse_csr:
        raise UserError(f"matrix must be a torch sparse CSR tensor, got {type(matrix).__name__}")

"""The class of feature sets: rows, identities, cameras, paths, further columns."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmga.common import ids, notebooks
from mmga.common.arrays import as_array, as_tensor, is_mapped
from mmga.common.errors import UserError
from mmga.common.tables import PATHS, are_paths
from mmga.ops.precision import float32_products
from mmga.retrieval.features import containers
from mmga.retrieval.features.sharded_matrix import ShardedMatrix

JUNK = ids.JUNK
"""The pid of junk detections: never ranked, counted as junk."""
UNKNOWN = ids.UNKNOWN
"""The code of an unknown pid or camid: found by a search, left out of an evaluation."""

TWO_SIDED = {"f": "features", "label": "pids", "cam": "camids", "path": "paths"}
"""layumi's names for a file that holds both sides: query_f, query_label, query_cam, ..."""


# Types whose every value float32 has.
_NARROW = (
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)

_RESERVED = ("features", "parts", "visibility", "pids", "camids", "paths")

Matrix = Tensor | np.ndarray
"""Numbers as callers hold them."""
Column = Tensor | np.ndarray | Sequence[int] | Sequence[str] | Sequence[float]
"""One value for each row of features, as callers hold them."""


class Features:
    """Features with their labels.

    Attributes:
        rows: the feature rows [N, D], or part features [N, P, D].
        pids: identity of each row, int64 [N]; -1 is junk, UNKNOWN is not known.
        camids: camera of each row, int64 [N], UNKNOWN where not known; or None.
        paths: path of each image, unicode [N], or None.
        columns: further columns by name, each [N].
        parts: part features [N, P, D], or None.
        visibility: weight of each part in [0, 1], float32 [N, P], or None.
        pid_names: where pids were strings, the name of pid i at place i (sorted); else None.
        camid_names: likewise for cameras.
        notes: what was changed on the way in, one sentence each.
    """

    @float32_products()
    def __init__(
        self,
        features: Matrix | Sequence[Matrix] | None = None,
        pids: Column | None = None,
        camids: Column | None = None,
        paths: Column | None = None,
        *,
        columns: Mapping[str, Column] | None = None,
        parts: Matrix | Sequence[Matrix] | None = None,
        visibility: Matrix | None = None,
        scale: Matrix | float | None = None,
        source: str = "",
    ) -> None:
        """Check and keep the given arrays; features are not copied.

        Args:
            features: [N, D] float16 or float32 tensor or array, or a list of such shards.
                bfloat16 and floats of 8 bits are widened to float32 and float64 is rounded to it,
                which `notes` says. int8 stays as it is, and stands for the product with `scale`.
            pids: [N] integers or strings; None, NaN and empty strings are unknown.
            camids: likewise, or None where no protocol with cameras is meant.
            paths: [N] strings.
            columns: further values [N] by name.
            parts: [N, P, D] part features, instead of `features`.
            visibility: [N, P] weights of the parts, ones if absent.
            scale: of int8 features, [N] or one number, positive: values are the float32 products
                with it, which are computed as they are read. Without it, features have directions
                for the cosine and no lengths.
            source: name of the file, for messages.

        Raises:
            UserError: a length, shape or type does not fit.
        """
        self.source: str = source
        self.notes: list[str] = []
        if (features is None) == (parts is None):
            raise UserError(
                f"{self._name('features')}: expected either features [N, D] or parts [N, P, D], "
                f"found {'neither' if features is None else 'both'}"
            )
        self.rows: ShardedMatrix = self._rows(
            "features" if parts is None else "parts",
            features if parts is None else parts,
            2 if parts is None else 3,
        )
        count = len(self.rows)
        self._set_scale(scale, count)
        if pids is None:
            raise UserError(f"{self._name('pids')} are missing: give one identity per row")
        self.pids: np.ndarray
        self.pid_names: np.ndarray | None
        self.pids, self.pid_names = self._labels("pids", pids, count)
        self.camids: np.ndarray | None = None
        self.camid_names: np.ndarray | None = None
        if camids is not None:
            self.camids, self.camid_names = self._labels("camids", camids, count)
        self.paths: np.ndarray | None = None
        if paths is not None:
            values = self._column("paths", paths, count)
            self.paths = np.asarray([str(path) for path in values], dtype=np.str_)
        self.columns: dict[str, np.ndarray] = {}
        for name, column in (columns or {}).items():
            if name in (*_RESERVED, *(["scale"] if self.rows.stored == torch.int8 else [])):
                raise UserError(
                    f"{self._name('columns')}: none can be called {name}, as files name other "
                    "values so; rename it"
                )
            self.columns[name] = self._column(name, column, count)
        self.visibility: Tensor | None = None
        if parts is not None:
            self.visibility = self._visibility(visibility)
        elif visibility is not None:
            raise UserError(
                f"{self._name('visibility')} belongs to parts [N, P, D], which are missing"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        source = f", {self.source}" if self.source else ""
        return f"Features({self._shape()}{source})"

    def _repr_html_(self) -> str:
        """Return what there is of each item as HTML for a notebook."""
        rows = [["features" if len(self.rows.shape) == 2 else "parts", self._shape()]]
        for name, codes in (("identities", self.pids), ("cameras", self.camids)):
            if codes is not None:
                rows.append([name, _counted(codes, junk=name == "identities")])
        others = {} if self.paths is None else {"path": self.paths}
        for name, values in (others | self.columns).items():
            rows.append([name, f"{values[0]} ... {values[-1]}"])
        table = notebooks.rows(["", f"{len(self)} items"], rows)
        return notebooks.block(f"mmga.Features {self.source}".strip(), table, self.notes)

    def _shape(self) -> str:
        kind = str(self.rows.stored).removeprefix("torch.")
        return f"{' x '.join(map(str, self.rows.shape))} {kind}"

    @property
    def features(self) -> Tensor:
        """The rows as one tensor [N, D] (a copy of several shards, and of int8 in float32)."""
        if len(self.rows.shape) == 3:
            raise UserError("these are part features: they stand in .parts [N, P, D]")
        return self.rows.whole()

    @property
    def parts(self) -> Tensor | None:
        """Part features [N, P, D], or None."""
        return self.rows.whole() if len(self.rows.shape) == 3 else None

    @property
    def dimension(self) -> int:
        """Number of values in a row (of a part)."""
        return self.rows.shape[-1]

    def with_rows(self, rows: ShardedMatrix) -> Features:
        """Return the same items with other rows: of other values, or on another device."""
        if rows is self.rows:
            return self
        moved = copy.copy(self)
        moved.rows = rows
        return moved

    def cut(self, first: int, last: int, *, alone: bool = False) -> Features | None:
        """Return consecutive rows as new features, None if there are none.

        Args:
            first: the first row.
            last: the row after the last.
            alone: copy them unless they are mapped, so that the others can be freed.
        """
        if first >= last:
            return None
        labels = slice(first, last)
        part = self.with_rows(self.rows.cut(first, last))
        if alone and not self.rows.mapped:
            part.rows = ShardedMatrix([part.rows.numbers().clone()], part.rows.scale)
        part.pids = self.pids[labels]
        part.camids = None if self.camids is None else self.camids[labels]
        part.paths = None if self.paths is None else self.paths[labels]
        part.columns = {name: column[labels] for name, column in self.columns.items()}
        part.visibility = None if self.visibility is None else self.visibility[labels]
        part.notes = list(self.notes)
        return part

    def select(self, indices: np.ndarray | Sequence[int] | slice) -> Features:
        """Return the given rows, in the given order, as new features (copied)."""
        at = np.arange(len(self))[indices]
        chosen = Features.__new__(Features)
        chosen.source, chosen.notes = self.source, list(self.notes)
        chosen.rows = self.rows.select(torch.from_numpy(at).to(self.rows.device))
        chosen.pids, chosen.pid_names = self.pids[at], self.pid_names
        chosen.camids = None if self.camids is None else self.camids[at]
        chosen.camid_names = self.camid_names
        chosen.paths = None if self.paths is None else self.paths[at]
        chosen.columns = {name: column[at] for name, column in self.columns.items()}
        chosen.visibility = (
            None if self.visibility is None else self.visibility[torch.from_numpy(at)]
        )
        return chosen

    def arrays(self, side: str | None = None) -> dict[str, Matrix]:
        """Return what a file holds, by the names it has there (layumi's for a `side`)."""
        kind = "features" if len(self.rows.shape) == 2 else "parts"
        arrays: dict[str, Matrix] = {kind: self.rows.numbers()}
        arrays.update(self.arrays_without_rows())
        if side is None:
            return arrays
        short = {long: name for name, long in TWO_SIDED.items()}
        return {f"{side}_{short.get(name, name)}": value for name, value in arrays.items()}

    def arrays_without_rows(self) -> dict[str, Matrix]:
        """Return everything but the feature rows, by the names it has in a file."""
        arrays: dict[str, Matrix] = {"pids": ids.written(self.pids, self.pid_names)}
        if self.camids is not None:
            arrays["camids"] = ids.written(self.camids, self.camid_names)
        if self.paths is not None:
            arrays["paths"] = self.paths
        if self.visibility is not None:
            arrays["visibility"] = self.visibility
        if self.rows.scale is not None:
            arrays["scale"] = self.rows.scale.cpu()
        arrays.update(self.columns)
        return arrays

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a file; the suffix names the container.

        Args:
            path: .npz, .safetensors, .mat, .h5, .pt, .parquet, or no suffix for a folder of .npy
                files, which is what can be memory-mapped.

        Raises:
            UserError: the suffix is unknown, or the file cannot be written.
        """
        containers.write(path, self.arrays())

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet table: a row for each item, `features` a list of fixed length.

        Further columns are `pid`, `camid` and `path`, as far as they are known (null where one is
        not), `scale` of int8 features, `visibility` of parts, and what `columns` hold.

        Raises:
            UserError: pyarrow is not installed, or the file cannot be written.
        """
        containers.write(path, self.arrays(), ".parquet")

    @classmethod
    @float32_products()
    def from_parquet(cls, path: str | os.PathLike[str]) -> Features:
        """Read a Parquet table as `to_parquet` writes it, or as pandas writes lists of numbers.

        Raises:
            UserError: pyarrow is not installed, or the table does not hold what is expected.
        """
        return of_arrays(under_own_names(containers.read(path, ".parquet")), os.fspath(path))

    def _name(self, argument: str) -> str:
        return f"{self.source}: {argument}" if self.source else argument

    def _column(self, argument: str, given: Any, count: int) -> np.ndarray:
        """Return one value for each row, text as unicode.

        Raises:
            UserError: there are more or fewer, or values of several numbers, or bytes of no text.
        """
        values = _flat(self._name(argument), given)
        if values.dtype.kind == "S":
            try:
                values = np.char.decode(values, "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self._name(argument)}: expected text, found bytes that are not UTF-8 "
                    f"({error.object[:20]!r}); store it as unicode"
                ) from error
        containers.check_array(self._name(argument), values)
        if values.ndim != 1 or len(values) != count:
            found = len(values) if values.ndim == 1 else f"shape {list(values.shape)}"
            turned = list(self.rows.shape) == [count, found] and count != found
            raise UserError(
                f"{self._name(argument)}: expected one for each of the {count} rows of features, "
                f"found {found}"
                + ("; the features look transposed, [D, N]: give features.T" if turned else "")
            )
        if values.dtype.kind not in "biufUMm":
            raise UserError(
                f"{self._name(argument)}: expected numbers or strings, found {values.dtype}"
            )
        return values

    def _rows(self, argument: str, given: Any, dimensions: int) -> ShardedMatrix:
        several = isinstance(given, list | tuple) and all(hasattr(part, "shape") for part in given)
        parts = given if several else [given]
        shards = [self._tensor(argument, part, dimensions) for part in parts]
        if not shards:
            raise UserError(f"{self._name(argument)}: found an empty list of shards")
        for number, shard in enumerate(shards[1:], 2):
            if shard.shape[1:] != shards[0].shape[1:]:
                raise UserError(
                    f"{self._name(argument)}: shard {number} has rows of {_shape(shard.shape[1:])} "
                    f"values, the first has {_shape(shards[0].shape[1:])}; all must be equal"
                )
        if len({shard.dtype for shard in shards}) > 1:
            raise UserError(
                f"{self._name(argument)}: shards mix "
                + " and ".join(sorted({str(one.dtype).removeprefix("torch.") for one in shards}))
                + "; write them in one dtype"
            )
        mapped = any(is_mapped(part, shard) for part, shard in zip(parts, shards, strict=True))
        rows = ShardedMatrix(shards, mapped=mapped)
        if not len(rows) or not all(rows.shape[1:]):
            raise UserError(f"{self._name(argument)}: found no values, shape {list(rows.shape)}")
        return rows

    def _tensor(self, argument: str, given: Any, dimensions: int) -> Tensor:
        expected = "[N, D]" if dimensions == 2 else "[N, P, D]"
        if not isinstance(given, Tensor):
            given = as_array(self._name(argument), given)
            containers.check_array(self._name(argument), given)
        tensor = as_tensor(self._name(argument), given)
        if tensor.dim() != dimensions:
            raise UserError(
                f"{self._name(argument)}: expected {expected}, found shape {list(tensor.shape)}"
            )
        if tensor.dtype == torch.float64 or tensor.dtype in _NARROW:
            found = str(tensor.dtype).removeprefix("torch.")
            done = "rounded" if tensor.dtype == torch.float64 else "widened"
            note = f"{self._name(argument)}: {found} {done} to float32"
            if note not in self.notes:
                self.notes.append(note)
            tensor = tensor.to(torch.float32)
        if tensor.dtype not in (torch.float16, torch.float32, torch.int8):
            raise UserError(
                f"{self._name(argument)}: expected float16 or float32, or int8 with a scale, found "
                f"{str(tensor.dtype).removeprefix('torch.')}; convert them to float32"
            )
        if tensor.stride(-1) != 1:
            tensor = tensor.contiguous()
        return tensor

    def _set_scale(self, given: Any, count: int) -> None:
        """Keep the scale of int8 rows, one for each."""
        name = self._name("scale")
        if self.rows.stored != torch.int8:
            if given is not None:
                found = str(self.rows.stored).removeprefix("torch.")
                raise UserError(f"{name} belongs to int8 features, found features of {found}")
            return
        if given is None:
            self.notes.append(f"{self._name('int8 features')} without a scale: directions alone")
            return
        scale = as_tensor(name, _flat(name, given)).to(self.rows.device, torch.float32)
        if tuple(scale.shape) not in ((1,), (count,)):
            raise UserError(
                f"{name}: expected one number, or one for each of the {count} rows of features, "
                f"found shape {list(scale.shape)}"
            )
        bad = torch.nonzero(~((scale > 0) & scale.isfinite())).flatten()
        if len(bad):
            raise UserError(
                f"{name}: expected positive numbers, found {float(scale[bad[0]])} for row "
                f"{int(bad[0])}"
            )
        self.rows.scale = scale.expand(count).contiguous()

    def _visibility(self, given: Any) -> Tensor:
        count, parts = self.rows.shape[:2]
        if given is None:
            return torch.ones(count, parts, dtype=torch.float32, device="cpu")
        weights = as_tensor(self._name("visibility"), given).to("cpu", torch.float32)
        if tuple(weights.shape) != (count, parts):
            raise UserError(
                f"{self._name('visibility')}: expected [{count}, {parts}], one weight for each "
                f"part, found shape {list(weights.shape)}"
            )
        if not bool(((weights >= 0) & (weights <= 1)).all()):
            raise UserError(f"{self._name('visibility')}: expected weights between 0 and 1")
        return weights

    def _labels(
        self, argument: str, given: Any, count: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return int64 labels and, for strings, the names in sorted order."""
        values = _flat(self._name(argument), given)
        if values.dtype.kind == "O":
            plain = ids.of_objects(values)
            values = values if plain is None else plain
        values = self._column(argument, values, count)
        if values.dtype.kind == "U":
            codes, names = ids.named(values, junk=argument == "pids")
        else:
            codes, names = self._numbers(argument, values), None
        missing = int((codes == UNKNOWN).sum())
        if missing:
            self.notes.append(f"{self._name(argument)}: {missing} of {count} are unknown")
        return codes, names

    def _numbers(self, argument: str, values: np.ndarray) -> np.ndarray:
        """Return labels that are numbers as int64."""
        if values.dtype.kind in "iub":
            if values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max:
                raise UserError(f"{self._name(argument)}: found ids past 2^63; use strings instead")
            return np.ascontiguousarray(values, dtype=np.int64)
        if values.dtype.kind != "f":
            raise UserError(
                f"{self._name(argument)}: expected integers or strings, found {values.dtype}"
            )
        # A float keeps whole numbers apart only up to a power of two; beyond it ids collide.
        limit = 2 ** (np.finfo(values.dtype).nmant + 1)
        missing = np.isnan(values)
        known = np.where(missing, 0, values)
        if not np.isfinite(known).all() or (known != np.floor(known)).any():
            raise UserError(f"{self._name(argument)}: expected whole numbers, found fractions")
        if len(known) and np.abs(known).max() >= limit:
            raise UserError(
                f"{self._name(argument)}: ids stored as {values.dtype} collide from {limit} "
                f"on, found {known[np.abs(known).argmax()]:.0f}; store them as int64 or "
                "strings"
            )
        if not missing.any():  # there is no NaN but among floats
            self.notes.append(f"{self._name(argument)}: stored as {values.dtype}, read as int64")
        return np.where(missing, UNKNOWN, known.astype(np.int64))


def of_arrays(arrays: dict[str, Any], source: str) -> Features:
    """Return the features that a file holds, given its arrays; what has no meaning is a column.

    Raises:
        UserError: a length, shape or type does not fit.
    """
    names: tuple[str, ...] = _RESERVED
    rows = arrays.get("features", arrays.get("parts"))
    if getattr(rows, "dtype", None) in (torch.int8, np.dtype(np.int8)):
        names += ("scale",)
    elif np.ndim(arrays.get("scale", ())) == 0:  # one number about the file is no column
        del arrays["scale"]
    own = {name: arrays[name] for name in names if name in arrays}
    columns = {name: value for name, value in arrays.items() if name not in names}
    return Features(**own, columns=columns, source=source)


def under_own_names(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return arrays with identities, cameras and paths under the names that they have here."""
    for name in ("pid", "camid"):  # as in tables
        if name in arrays and f"{name}s" not in arrays:
            arrays = {f"{one}s" if one == name else one: value for one, value in arrays.items()}
    if "paths" in arrays:
        return arrays
    for name in PATHS:
        if name in arrays and are_paths(name, np.asarray(arrays[name]).squeeze()):
            return {"paths" if one == name else one: value for one, value in arrays.items()}
    return arrays


def _counted(codes: np.ndarray, *, junk: bool) -> str:
    """Return how many labels there are, and how many items have none."""
    known = codes[(codes != UNKNOWN) & ~(junk & (codes == JUNK))]
    text = str(len(np.unique(known)))
    for name, count in (
        ("junk", int((codes == JUNK).sum()) if junk else 0),
        ("unknown", int((codes == UNKNOWN).sum())),
    ):
        text += f", {count} items {name}" if count else ""
    return text


def _flat(name: str, values: Any) -> np.ndarray:
    """Return a one-dimensional array; 1 x N and N x 1, as MATLAB writes them, lose the 1."""
    if isinstance(values, np.ma.MaskedArray):  # whose masked values are none
        plain = values.data.astype(object)
        plain[np.ma.getmaskarray(values)] = None
        values = plain
    array = as_array(name, values)
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.dtype.hasobject and all(isinstance(value, str) for value in array.flat):
        array = array.astype(np.str_)  # columns of strings as pandas has them
    return np.atleast_1d(array)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def common_labels(
    name: str,
    query: np.ndarray,
    query_names: np.ndarray | None,
    gallery: np.ndarray,
    gallery_names: np.ndarray | None,
    *,
    strict: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return labels of two sets in one numbering: names and numbers match by what they spell.

    Args:
        name: pids or camids.
        query: labels of the queries, int64 [Q].
        query_names: the name of each label, None where labels are numbers.
        gallery: labels of the gallery, int64 [G].
        gallery_names: likewise.
        strict: refuse sides of which one has numbers and the other none.

    Returns:
        Labels of both sides, and the names of their codes, None where they are numbers.

    Raises:
        UserError: one set has integers, the other strings of which none is a whole number.
    """
    if query_names is None and gallery_names is None:
        return query, gallery, None
    special = (UNKNOWN, JUNK) if name == "pids" else (UNKNOWN,)
    sides = [_keys(query, query_names, special), _keys(gallery, gallery_names, special)]
    spelled = [{word for word in words if isinstance(word, str)} for _, words in sides]
    numbered = [any(map(ids.is_number, words)) for words in spelled]
    if strict and all(spelled) and (query_names is None) != (gallery_names is None):
        strings, integers = ("query", "gallery") if gallery_names is None else ("gallery", "query")
        if not all(numbered):
            raise UserError(
                f"{name}: the {strings} has strings and the {integers} integers; "
                "write both in the same way"
            )
    union = sorted(set().union(*spelled))
    places = {word: place for place, word in enumerate(union)}
    common = [
        np.asarray([places[word] if isinstance(word, str) else word for word in words], np.int64)[
            inverse
        ]
        for inverse, words in sides
    ]
    return common[0], common[1], np.asarray(union, np.str_)


def _keys(
    codes: np.ndarray, names: np.ndarray | None, special: tuple[int, ...]
) -> tuple[np.ndarray, list[str | int]]:
    """Return what each distinct code spells, special codes as they are, and the place of each."""
    distinct, inverse = np.unique(codes, return_inverse=True)
    words = [
        code if code in special else ids.key(str(code if names is None else names[code]))
        for code in distinct.tolist()
    ]
    return inverse.reshape(-1), words


def joined(loaded: Sequence[Features]) -> Features:
    """Return the rows of several sets one after the other, without copying features.

    Raises:
        UserError: their widths, types or columns differ.
    """
    first = loaded[0]
    for other in loaded[1:]:
        if other.rows.shape[1:] != first.rows.shape[1:]:
            raise UserError(
                f"{other.source} has rows of {_shape(other.rows.shape[1:])} values, {first.source} "
                f"of {_shape(first.rows.shape[1:])}; all shards must have the same"
            )
        held, wanted = _contents(other), _contents(first)
        if held != wanted:
            raise UserError(
                f"{other.source} holds {', '.join(sorted(held))}, but {first.source} "
                f"{', '.join(sorted(wanted))}; all shards must hold the same"
            )
        if other.rows.stored != first.rows.stored:
            raise UserError(
                f"{other.source} is {other.rows.stored}, {first.source} {first.rows.stored}; "
                "write all shards in one dtype"
            )
    shards = [shard for one in loaded for shard in one.rows.shards]
    arrays = [one.arrays_without_rows() for one in loaded]
    joined: dict[str, Any] = {
        name: np.concatenate([np.asarray(one[name]) for one in arrays]) for name in arrays[0]
    }
    for name in ("pids", "camids"):  # float64 beside int64 would lose digits of large ids
        coded = [one.pid_names if name == "pids" else one.camid_names for one in loaded]
        if name in joined and all(names is None for names in coded):
            joined[name] = np.concatenate([getattr(one, name) for one in loaded])
    visibility, scale = (joined.pop(name, None) for name in ("visibility", "scale"))
    names = ("pids", "camids", "paths")
    whole = Features(
        shards if len(first.rows.shape) == 2 else None,
        *(joined.get(name) for name in names),
        columns={name: value for name, value in joined.items() if name not in names},
        parts=shards if len(first.rows.shape) == 3 else None,
        visibility=visibility,
        scale=scale,
        source=f"{first.source} and {len(loaded) - 1} more",
    )
    whole.rows.mapped = any(one.rows.mapped for one in loaded)
    whole.notes = [note for one in loaded for note in one.notes]
    return whole


def _contents(features: Features) -> set[str]:
    return set(features.arrays_without_rows())

"""Numbers as callers hold them, as plain tensors and arrays."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmga.common.errors import UserError, first_line

_BLOCK = 1 << 16  # values that are looked up together


class _Lent:
    """A read-only array under an interface that does not say so, for readers that never write."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # kept alive as long as its memory is lent
        interface = dict(array.__array_interface__)
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def as_tensor(name: str, given: Any, *, lend: bool = False) -> Tensor:
    """Return numbers as a plain dense tensor without a gradient, of their dtype and device.

    Memory is shared where torch can. Byte order, negative strides, subclasses and lazy negation
    are resolved by a copy, and so is read-only memory, about which torch warns.

    Args:
        name: of the argument, for messages.
        given: tensor, array, or nested sequences of numbers.
        lend: share read-only memory, too (memory-mapped files); nobody may write to the tensor.

    Raises:
        UserError: it holds other things than real numbers, is sparse, without data, or masked.
    """
    if isinstance(given, Tensor):
        return _dense(name, given)
    array = as_array(name, given)
    if array.dtype.kind not in "fiub":
        raise UserError(f"{name}: expected numbers, found {_named(array.dtype)}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)  # long double, which torch has not
    odd = any(step < 0 or step % array.itemsize for step in array.strides)
    if odd or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    if not array.flags.writeable:
        array = np.asarray(_Lent(array)) if lend and array.size else array.copy()
    return torch.from_numpy(array)


def is_mapped(given: Any, tensor: Tensor) -> bool:
    """Return whether a tensor that was made of an array reads a file that is mapped."""
    owner = given
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner, mmap.mmap) and np.may_share_memory(given, tensor.numpy())


def as_array(name: str, given: Any) -> np.ndarray:
    """Return values of any kind, numbers or names, as an array without a mask.

    Args:
        name: of the argument, for messages.
        given: tensor, array, or nested sequences.

    Raises:
        UserError: a sequence has rows of different lengths, values are masked, or a tensor holds
            what NumPy has not.
    """
    if isinstance(given, Tensor):
        dense = _dense(name, given).cpu()
        try:
            return dense.numpy()
        except TypeError:
            raise UserError(
                f"{name}: found a tensor of {_named(dense.dtype)}, which NumPy has not; convert "
                "it with x.float(), integers with x.long()"
            ) from None
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise UserError(
            f"{name}: found {int(np.ma.count_masked(given))} masked values; leave their rows out, "
            "or fill them with x.filled(value)"
        )
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name}: expected an array, found {type(given).__name__} that is none "
            f"({first_line(error)})"
        ) from error


def _dense(name: str, given: Tensor) -> Tensor:
    tensor = given.detach()
    found = None
    if tensor.is_nested or tensor.layout != torch.strided:
        found = f"a tensor of layout {_named(tensor.layout)}; pass x.to_dense()"
    elif tensor.device.type == "meta":
        found = "a tensor on the device meta, which holds no values"
    elif tensor.is_quantized:
        found = "a quantized tensor; pass x.dequantize()"
    elif tensor.is_complex():
        found = f"{_named(tensor.dtype)}; pass real numbers"
    if found is not None:
        raise UserError(f"{name}: expected a dense tensor of numbers, found {found}")
    plain = tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)
    return plain.resolve_conj().resolve_neg()


def _named(kind: object) -> str:
    return str(kind).removeprefix("torch.")


def among(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return which values [N] are among the wanted ones, bool [N], as `np.isin`, in little memory.

    Numbers are looked up in blocks, where `np.isin` sorts all values with copies of them.
    """
    wanted, found = np.unique(wanted), np.zeros(len(values), bool)
    for begin in range(0, len(values) if len(wanted) else 0, _BLOCK):
        block = values[begin : begin + _BLOCK]
        places = np.searchsorted(wanted, block).clip(max=len(wanted) - 1)
        found[begin : begin + _BLOCK] = wanted[places] == block
    return found

"""Running a CUDA operator as it must stand the test: on a card, or its source on the CPU.

Inputs lie between guards: NaN or integers that no index should be, so that a read beyond an array
spoils the result and a write beyond it shows. Everything runs several times, emulated threads in
other orders each time, and must give the same bits.
"""

import emulated
import pytest
import torch
from torch import Tensor

GUARD = 64
ORDERS = (0, 1, 2, 3)  # as numbered, reversed, two shuffles
POISON = {torch.int64: 2**40 + 7, torch.int32: 2**30 + 7, torch.int16: 2**14 + 7, torch.bool: True}


def guarded(tensor: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Return a copy with the same strides, and the larger storage around it."""
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    span = span if tensor.numel() else 0
    poison = POISON.get(tensor.dtype, torch.nan)
    storage = torch.full((span + 2 * GUARD,), poison, dtype=tensor.dtype, device=device)
    copy = storage.as_strided(tensor.shape, tensor.stride(), GUARD)
    copy.copy_(tensor)
    return copy, storage


def guards(storage: Tensor) -> Tensor:
    return torch.cat([storage[:GUARD], storage[-GUARD:]])


class Backend:
    """One way to run the operators of the CUDA library."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        if kind == "emulated":
            try:
                self._library = emulated.library()
            except emulated.Absent as reason:
                pytest.skip(f"kernels cannot be emulated: {reason}")

    def results(
        self, name: str, *arguments: object, orders: tuple[int, ...] = ORDERS
    ) -> list[Tensor]:
        """Return what an operator gives and what it changes, on the CPU."""
        runs = [self._once(name, arguments, order) for order in orders]
        for other in runs[1:]:
            for one, two in zip(runs[0], other, strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
        return runs[0]

    def _once(self, name: str, arguments: tuple[object, ...], order: int) -> list[Tensor]:
        op = getattr(torch.ops.mmga_emulated if self.kind == "emulated" else torch.ops.mmga, name)
        device = "cpu" if self.kind == "emulated" else "cuda"
        given, storages = [], []
        for value in arguments:
            if isinstance(value, Tensor):
                value, storage = guarded(value, device)
                storages.append((storage, guards(storage).clone()))
            given.append(value)
        if self.kind == "emulated":
            self._library.emulation_set_order(order)
            before = self._library.emulation_launches()
            out = op(*given)
            # Not the reference, nor nothing.
            assert self._library.emulation_launches() > before or not sum(
                part.numel() for part in listed(out)
            )
        else:
            out = op(*given)
            torch.cuda.synchronize()
        for storage, before_run in storages:
            torch.testing.assert_close(guards(storage), before_run, rtol=0, atol=0, equal_nan=True)
        return [part.cpu() for part in (*listed(out), *changed(op.default, given))]


def listed(out: object) -> list[Tensor]:
    return [] if out is None else [out] if isinstance(out, Tensor) else list(out)


def changed(op, arguments) -> list[Tensor]:
    written = [a.alias_info is not None and a.alias_info.is_write for a in op._schema.arguments]
    return [
        value
        for value, write in zip(arguments, written, strict=True)
        if write and isinstance(value, Tensor)
    ]


def of_reference(name: str, *arguments: object) -> list[Tensor]:
    """Return what the reference gives and changes."""
    from mmga.ops import reference

    copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    out = getattr(reference, name)(*copies)
    return [*listed(out), *changed(getattr(torch.ops.mmga, name).default, copies)]


def assert_same(found: list[Tensor], expected: list[Tensor], rtol: float = 0) -> None:
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == two.dtype and one.shape == two.shape
        exact = rtol == 0 or not one.is_floating_point()
        torch.testing.assert_close(
            one, two, rtol=0 if exact else rtol, atol=0 if exact else 1e-300, equal_nan=True
        )


def check(cuda: Backend, name: str, *arguments: object, rtol: float = 0) -> list[Tensor]:
    """Hold an operator against the reference and return what it gave."""
    found = cuda.results(name, *arguments)
    assert_same(found, of_reference(name, *arguments), rtol)
    return found

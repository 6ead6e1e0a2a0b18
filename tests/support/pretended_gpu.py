"""A GPU that is not there: torch's fake tensors say that they are on it, and hold no numbers.

What is refused: an operation on tensors of both devices, even where torch would copy an index. What
is counted: how often the host would wait for the device.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
_COPIES = ("_to_copy", "copy_")
# The third asks whether a module that moves may keep its parameters' objects.
_ON_BOTH = (*_COPIES, "_has_compatible_shallow_copy_type")
# Numbers of ``c10::DeviceType``.
_CUDA, _META = 1, 14


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation before it is made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Operations that the host cannot leave before the device is done with all before them.
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Refuse, count, and stand in for what has no answer without numbers."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_mixed = len({tensor.device.type for tensor in tensors if tensor.dim()}) > 1
        assert not is_mixed or name in _ON_BOTH, f"{func} on two devices"
        is_on_gpu = any(tensor.is_cuda for tensor in tensors)
        if name == "_local_scalar_dense" and is_on_gpu:
            self.waits.append(name)
            return 0.0 if tensors[0].is_floating_point() else 0
        if name == "nonzero" and is_on_gpu:  # as if all were meant
            self.waits.append(name)
            return args[0].new_zeros((args[0].numel(), args[0].dim()), dtype=torch.int64)
        found = func(*args, **kwargs)
        if name in _COPIES and _crosses(found, tensors) and not _is_async(args, kwargs):
            self.waits.append(name)
        return found


class _Stream:
    """Stands in for streams and events: everything is done at once."""

    def __init__(self, _device: torch.device | None = None) -> None:
        pass

    def wait_stream(self, _other: object) -> None:
        """Return."""

    wait_event = wait_stream

    def record_event(self) -> "_Stream":
        """Return an event."""
        return self

    def synchronize(self) -> None:
        """Return."""


class _Graph:
    """Stands in for a captured graph, which replays nothing."""

    def __init__(self) -> None:
        self.num_replays = 0

    def replay(self) -> None:
        """Count."""
        self.num_replays += 1

    def pool(self) -> int:
        """Return a handle."""
        return 1


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Let tensors be made on ``GPU``, as if there were one."""
    # In inference mode operations come here whole, before they are taken to pieces for the fakes.
    monkeypatch.setattr(torch, "inference_mode", lambda *_: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _graph, pool: nullcontext(pool))
    with _device_guard(), FakeTensorMode(), Watch() as watch:
        yield watch


@contextmanager
def _device_guard() -> Iterator[None]:
    """Lend CUDA the device guard of meta tensors, which does nothing: this build has none."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    name = "_ZN3c104impl26device_guard_impl_registryE"
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, name)
    before = guards[_CUDA]
    guards[_CUDA] = before or guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


def _crosses(found: Any, tensors: list[Tensor]) -> bool:
    return isinstance(found, Tensor) and any(one.is_cuda != found.is_cuda for one in tensors)


def _is_async(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("non_blocking", len(args) > 2 and args[2]))

"""The allow-list of names that a pickle may import, and descriptions of the objects that a pickle would create.

A tag (`Import`) represents each allowed name. This module never imports or calls a name from a file. A call in the pickle becomes a
description of its result, such as `TensorSpec`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from textual_inversion.errors import EmbeddingError, UnsafeFileError
from textual_inversion.formats.containers.tensors import ELEMENT_SIZES


@dataclass(frozen=True)
class StorageSpec:
    """A tensor's raw data under `key`: `numel` elements of `dtype`, named as in tensors.py. `inline` holds bytes from the pickle itself."""

    dtype: str
    key: str
    numel: int
    inline: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class TensorSpec:
    """A view of a storage. Offset and stride count elements. The view is not checked against the storage yet."""

    storage: StorageSpec
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Opaque:
    """A harmless value that no reader needs, such as a set or a device."""


class ModuleState:
    """Represents a `ParameterDict`; `state` holds its attributes."""

    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}


@dataclass(frozen=True)
class Import:
    """The tag of a name on the allow-list. `dtype` is set where the name is an element type or a typed storage class."""

    kind: str
    dtype: str | None = None


@dataclass(eq=False)
class NumpyType:
    """Represents a `numpy.dtype`: its code, such as `f4`, and its byte order."""

    code: str
    order: str = "<"


@dataclass(eq=False)
class NumpyArray:
    """Represents a `numpy.ndarray`; empty until the pickle sets its state."""

    dtype: str = ""
    size: tuple[int, ...] = ()
    fortran: bool = False
    data: bytes = b""


_STORAGES = {
    "FloatStorage": "fp32",
    "HalfStorage": "fp16",
    "BFloat16Storage": "bf16",
    "DoubleStorage": "fp64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_DTYPES = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float64": "fp64",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint8": "uint8",
    "bool": "bool",
}
#: No embedding has these types, but other tensors in the same file may.
_OTHER_DTYPES = ("uint16", "uint32", "uint64", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2")
_BUILTINS = ("set", "frozenset", "complex", "bytearray", "slice", "range", "xrange", "list", "dict", "int", "float")
_TENSOR = Import("tensor")
_PARAMETER = Import("parameter")
_OPAQUE = Import("opaque")
ALLOWED: dict[str, Import] = {
    "collections.OrderedDict": Import("dict"),
    "collections.defaultdict": Import("dict"),
    "torch._utils._rebuild_tensor": _TENSOR,
    "torch._utils._rebuild_tensor_v2": _TENSOR,
    "torch._utils._rebuild_tensor_v3": Import("typed tensor"),
    "torch._utils._rebuild_parameter": _PARAMETER,
    "torch._utils._rebuild_parameter_with_state": _PARAMETER,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _PARAMETER,  # here, too, the tensor is the first argument
    "torch._utils._rebuild_device_tensor_from_numpy": Import("array tensor"),
    "torch._tensor._rebuild_from_type_v2": Import("subclass"),
    "torch.nn.modules.container.ParameterDict": Import("module"),
    "torch.Size": Import("size"),
    "torch.Tensor": _OPAQUE,
    "torch.nn.parameter.Parameter": _OPAQUE,
    "torch.device": _OPAQUE,
    "torch.storage.UntypedStorage": Import("storage", "uint8"),
    "numpy.dtype": Import("numpy type"),
    "numpy.ndarray": _OPAQUE,
    "_codecs.encode": Import("bytes"),
    **{f"numpy.{core}.multiarray.scalar": Import("numpy scalar") for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": Import("numpy array") for core in ("core", "_core")},
    **{f"{module}.{name}": _OPAQUE for name in _BUILTINS for module in ("builtins", "__builtin__")},
    **{f"torch.{name}": Import("storage", dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": Import("type", dtype) for name, dtype in _DTYPES.items()},
    **{f"torch.{name}": _OPAQUE for name in _OTHER_DTYPES},
}
#: numpy code of each supported type -> (type as shown, format letter of `struct`).
_NUMPY = {"f2": ("fp16", "e"), "f4": ("fp32", "f"), "f8": ("fp64", "d"), "i4": ("int32", "i"), "i8": ("int64", "q")}


def describe_call(function: Import, arguments: tuple[Any, ...]) -> Any:
    """Describe the result of `function(*arguments)` without calling it.

    Raises:
        UnsafeFileError: honest files never call `function`.
        EmbeddingError: neither PyTorch nor numpy writes these arguments.
    """
    describe = _CALLS.get(function.kind)
    if describe is None:
        raise UnsafeFileError("its pickle calls something that is only a name in honest files; it was not run, and is best deleted.")
    try:
        return describe(arguments)
    except (TypeError, ValueError, IndexError, struct.error) as error:
        raise EmbeddingError("its pickle describes a value in a way that PyTorch does not write; the file is damaged.") from error


def change_state(target: Any, state: Any) -> None:
    """Apply the state of a BUILD instruction to `target`. The attributes of dicts, parameters and opaque values are ignored.

    Raises:
        UnsafeFileError: honest pickles never change such an object.
    """
    if isinstance(target, ModuleState):
        if isinstance(state, dict):
            target.state = state
    elif isinstance(target, NumpyType):
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else target.order
        target.order = order if isinstance(order, str) else "?"
    elif isinstance(target, NumpyArray):
        _fill_array(target, state)
    elif type(target) is not dict and not isinstance(target, (Opaque, TensorSpec)):
        raise UnsafeFileError("its pickle changes an object that it should only hold; it was not run.")


def storage_from(pid: Any) -> StorageSpec | Import:
    """Translate a persistent id into the storage that it names or, in the legacy format, into a module's class.

    The id of a storage is ("storage", type, key, device, elements). Old files add a view, which must be None.
    """
    if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module" and isinstance(pid[1], Import):
        return pid[1]  # the legacy format adds the source text of the class, which is ignored
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or (len(pid) == 6 and pid[5] is not None):
        raise EmbeddingError("its pickle refers to outside data in a way that PyTorch does not write; the file is damaged.")
    _, tag, key, _, numel = pid[:5]
    if not isinstance(tag, Import) or tag.kind != "storage" or tag.dtype is None or not isinstance(key, str) or type(numel) is not int:
        raise EmbeddingError("its pickle names a tensor's data wrongly; the file is damaged.")
    return StorageSpec(tag.dtype, key, numel)


def _tensor(arguments: tuple[Any, ...]) -> TensorSpec:
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, StorageSpec) or type(offset) is not int or not (_whole_numbers(size) and _whole_numbers(stride)):
        raise EmbeddingError("its pickle describes a tensor by something other than whole numbers; the file is damaged.")
    return TensorSpec(storage, offset, size, stride)


def _typed_tensor(arguments: tuple[Any, ...]) -> TensorSpec | Opaque:
    """A tensor over untyped bytes. The seventh argument is its type; a type that no embedding has gives an `Opaque`."""
    spec, dtype = _tensor(arguments), arguments[6]
    if not isinstance(dtype, Import) or dtype.dtype is None or spec.storage.dtype != "uint8":
        return Opaque()
    width = ELEMENT_SIZES[dtype.dtype]
    if spec.storage.numel % width:
        raise ValueError("bytes that are no whole number of elements")
    return TensorSpec(StorageSpec(dtype.dtype, spec.storage.key, spec.storage.numel // width), spec.offset, spec.size, spec.stride)


def _first_tensor(arguments: tuple[Any, ...]) -> TensorSpec | Opaque:
    first = arguments[0]
    if not isinstance(first, (TensorSpec, Opaque)):
        raise ValueError("a parameter of something that is no tensor")
    return first


def _subclass(arguments: tuple[Any, ...]) -> Any:
    """A tensor with attributes. The first argument is the function that rebuilds the tensor. The attributes are ignored."""
    function, _, inner = arguments[:3]
    if not isinstance(function, Import) or function.kind not in ("tensor", "typed tensor", "parameter") or not isinstance(inner, tuple):
        raise ValueError("a tensor made by something else")
    return describe_call(function, inner)


def _array_tensor(arguments: tuple[Any, ...]) -> TensorSpec | Opaque:
    """A tensor that is pickled as a numpy array, because PyTorch cannot save tensors of its device (DirectML, for example)."""
    array = arguments[0]
    if not isinstance(array, NumpyArray):
        raise ValueError("a tensor of something that is no array")
    if not array.dtype:
        return Opaque()
    size = array.size
    stride, step = [0] * len(size), 1
    for axis in range(len(size)) if array.fortran else reversed(range(len(size))):
        stride[axis], step = step, step * size[axis]
    return TensorSpec(StorageSpec(array.dtype, "of numpy", step, array.data), 0, size, tuple(stride))


def _fill_array(array: NumpyArray, state: Any) -> None:
    """Fill `array` from numpy's state: version, shape, type, Fortran order, data."""
    if not isinstance(state, tuple) or len(state) != 5 or not _whole_numbers(state[1]) or len(state[1]) > 8:
        raise ValueError("no state of an array")
    _, size, dtype, fortran, data = state
    if isinstance(dtype, NumpyType) and dtype.code in _NUMPY and dtype.order in "<=|" and isinstance(data, bytes):
        array.dtype, array.size, array.fortran, array.data = _NUMPY[dtype.code][0], size, fortran is True, data


def _numpy_scalar(arguments: tuple[Any, ...]) -> int | float | Opaque:
    dtype, data = arguments
    if not isinstance(dtype, NumpyType) or dtype.code not in _NUMPY or dtype.order not in "<=|" or not isinstance(data, bytes):
        return Opaque()
    (value,) = struct.unpack(f"<{_NUMPY[dtype.code][1]}", data)
    return int(value) if dtype.code.startswith("i") else float(value)


def _numpy_type(arguments: tuple[Any, ...]) -> NumpyType:
    code = arguments[0]
    if not isinstance(code, str):
        raise ValueError("a type that is named by something else")
    return NumpyType(code[:8])


def _bytes(arguments: tuple[Any, ...]) -> bytes:
    text, encoding = arguments
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in another encoding than Python writes")
    return text.encode("latin-1")


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    (sizes,) = arguments
    if not _whole_numbers(sizes):
        raise ValueError("sizes that are no whole numbers")
    return tuple(sizes)


def _dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if any(not isinstance(argument, Import) for argument in arguments):  # the argument of a defaultdict is the class of its default values
        raise ValueError("a dict of something")
    return {}


def _module(arguments: tuple[Any, ...]) -> ModuleState:
    if arguments:
        raise ValueError("a ParameterDict of something")
    return ModuleState()


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(item) is int for item in value)


_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "array tensor": _array_tensor,
    "bytes": _bytes,
    "dict": _dict,
    "module": _module,
    "numpy array": lambda _: NumpyArray(),
    "numpy scalar": _numpy_scalar,
    "numpy type": _numpy_type,
    "opaque": lambda _: Opaque(),
    "parameter": _first_tensor,
    "size": _size,
    "subclass": _subclass,
    "tensor": _tensor,
    "typed tensor": _typed_tensor,
}

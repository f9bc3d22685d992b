"""The bodies of the KServe v2 protocol: a request's arrays as bytes, an answer's bytes as arrays.

Binary tensors both ways, and JSON ones where a server does not do binary. Pure functions: what the bytes
travel in is the business of `transport`. An answer becomes exactly what it says, or an error; nothing is
converted, filled up or cut off on the way, since each of these could make a number of what is none.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.generic]]
"""Arrays by name, of numbers or of `bytes` as objects."""

_DTYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def pack_request(inputs: Arrays, request_id: str = "") -> tuple[bytes, int]:
    """A request's body, and how many of its bytes are JSON.

    Args:
        inputs: arrays by name, `[B, ...]` of numbers, or of `bytes` as objects.
        request_id: comes back with the answer, if the server is Triton.
    """
    tensors, data = pack_tensors(inputs)
    request: dict[str, Any] = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    if request_id:
        request["id"] = request_id
    header = json.dumps(request).encode()
    return header + data, len(header)


def pack_tensors(arrays: Arrays) -> tuple[list[dict[str, Any]], bytes]:
    """What JSON says of each array, and all of their bytes."""
    tensors, parts = [], []
    for name, array in arrays.items():
        data = _pack(array)
        tensors.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": _NAMES.get(array.dtype, "BYTES"),
                "parameters": {"binary_data_size": len(data)},
            }
        )
        parts.append(data)
    return tensors, b"".join(parts)


def unpack_answer(body: bytes, header_length: int | None, model: str = "", request_id: str = "") -> Arrays:
    """Read outputs that are binary, or JSON where a server does not do binary ones.

    Args:
        body: all of the answer's body.
        header_length: how many of its bytes are JSON; None for all.
        model: the model that was asked; an answer that names another is refused.
        request_id: what was sent as id; an answer to another id is refused.

    Returns:
        Arrays by name, each as large as its shape says.

    Raises:
        Exception: of any type, for what is not such an answer; never an array that was not sent.
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise ValueError(f"its JSON part would have {header_length} of {len(body)} bytes")
    header = json_object(body[:header_length])
    for name, asked in (("model_name", model), ("id", request_id)):
        if asked and header.get(name, asked) != asked:
            raise ValueError(f"its {name} is {str(header[name])[:100]!r}, not {asked!r}")
    rest = memoryview(body)[len(body) if header_length is None else header_length :]
    answer: Arrays = {}
    for tensor in header["outputs"]:
        name, datatype, shape = tensor["name"], tensor["datatype"], tensor["shape"]
        if not isinstance(name, str) or name in answer:
            raise ValueError(f"output {name!r} is there twice, or has no name")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"{name} has the shape {shape}")
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            answer[name] = _from_json(tensor["data"], datatype, shape)
            continue
        if type(size) is not int or not 0 <= size <= len(rest):
            raise ValueError(f"{name} would have {size} of the {len(rest)} bytes that are left")
        data, rest = rest[:size], rest[size:]
        if datatype == "BYTES":
            answer[name] = _objects(list(_byte_items(data)), shape)
        else:
            answer[name] = np.frombuffer(data, dtype=_DTYPES[datatype]).reshape(shape)
    if len(rest):
        raise ValueError(f"{len(rest)} bytes belong to no output")
    return answer


def _from_json(data: Any, datatype: str, shape: list[int]) -> npt.NDArray[np.generic]:
    """An output that came as JSON: one flat list, of the very type that it says."""
    if datatype == "BYTES":
        return _objects([item.encode() for item in data], shape)
    if not isinstance(data, list) or not all(type(item) in (int, float) for item in data):
        raise ValueError("an output's data is not a flat list of numbers")
    with np.errstate(over="ignore"):  # too large for its type is infinite
        return np.array(data, dtype=_DTYPES[datatype]).reshape(shape)


def _objects(items: list[bytes], shape: list[int]) -> npt.NDArray[np.object_]:
    if len(items) != math.prod(shape):
        raise ValueError(f"{len(items)} items for the shape {shape}")
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


def _byte_items(data: memoryview) -> Iterator[bytes]:
    while data:
        (length,) = struct.unpack_from("<I", data)
        if length > len(data) - 4:
            raise ValueError(f"an item of {length} bytes where {len(data) - 4} are left")
        yield bytes(data[4 : 4 + length])
        data = data[4 + length :]


def json_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: it is none.
    """
    value = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _pack(array: npt.NDArray[np.generic]) -> bytes:
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel().tolist())
    return np.ascontiguousarray(array, dtype=_DTYPES[_NAMES[array.dtype]]).tobytes()

"""One HTTP conversation with a Triton server: is the model ready, what does it take, answer this.

Speaks the KServe v2 protocol with binary tensors over the standard library's HTTP client. PyTriton's own
client is left out on purpose: it is built on gevent, which does not mix with threads, and when its server is
killed it waits out its whole timeout, where a plain socket is told at once. A connection is made for each
request: next to a batch of rows it costs nothing, and none can go stale.

Numbers and bytes are all that a judge exchanges; other data types are refused.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from rs_aligner.reward.protocol import Arrays

_DTYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_HEADER_LENGTH = "Inference-Header-Content-Length"


class TransportError(Exception):
    """The server could not be reached, or did not answer the request; the message says which and why."""


class TritonConnection:
    """Requests to one model, one at a time. To be used by one thread; `abort` may come from another.

    Args:
        host: name or address of the server.
        port: its HTTP port.
        model: the model's name there.
    """

    def __init__(self, host: str, port: int, model: str) -> None:
        self._host = host
        self._port = port
        self._path = f"/v2/models/{quote(model, safe='')}"
        self._open: http.client.HTTPConnection | None = None
        self._aborted = False

    def problem(self, timeout: float) -> str | None:
        """Ask whether the model is ready.

        Returns:
            None if it is, else what is wrong, with the models that are there as far as the server tells.
        """
        try:
            status, _, body = self._exchange("GET", f"{self._path}/ready", timeout)
        except TransportError as error:
            return str(error)
        if status == 200:
            return None
        return f"the server answers HTTP {status}: {_error_text(body)}{self._others(timeout)}"

    def input_names(self, timeout: float) -> set[str]:
        """The names of the inputs that the model declares.

        Raises:
            TransportError: no usable answer.
        """
        status, _, body = self._exchange("GET", self._path, timeout)
        if status != 200:
            raise TransportError(f"the judge answers HTTP {status}: {_error_text(body)}")
        return {str(tensor.get("name")) for tensor in _json(body).get("inputs", [])}

    def infer(self, inputs: Arrays, timeout: float) -> Arrays:
        """Send one request and wait for its answer.

        Args:
            inputs: arrays by name, `[B, ...]` of numbers, or of `bytes` as objects.
            timeout: seconds to wait for the connection and then for the answer.

        Returns:
            All outputs of the model by name.

        Raises:
            TransportError: not reached, no answer in time, refused, or an answer that cannot be read.
        """
        tensors, parts = [], []
        for name, array in inputs.items():
            data = _pack(array)
            datatype = _NAMES.get(array.dtype, "BYTES")
            tensors.append(
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": datatype,
                    "parameters": {"binary_data_size": len(data)},
                }
            )
            parts.append(data)
        header = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
        status, header_length, body = self._exchange(
            "POST",
            f"{self._path}/infer",
            timeout,
            b"".join([header, *parts]),
            {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(header))},
        )
        if status != 200:
            raise TransportError(f"the judge answers HTTP {status}: {_error_text(body)}")
        try:
            return _unpack_answer(body, header_length)
        except (KeyError, TypeError, ValueError, struct.error) as error:
            raise TransportError(f"the judge's answer cannot be read: {error!r}") from error

    def abort(self) -> None:
        """Cut the request in flight short, and let none follow: whoever waits gets a `TransportError`."""
        self._aborted = True
        connection = self._open
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _others(self, timeout: float) -> str:
        """Name the models of a server that has not ours, if it tells."""
        with contextlib.suppress(TransportError, ValueError, TypeError, KeyError):
            status, _, body = self._exchange("POST", "/v2/repository/index", timeout)
            if status == 200:
                return f"; models there: {', '.join(model['name'] for model in json.loads(body)) or 'none'}"
            # Our own server keeps its index to itself, but carries its model in its name.
            _, _, body = self._exchange("GET", "/v2", timeout)
            return f"; the server there is called {_json(body)['name']}"
        return ""

    def _exchange(
        self, method: str, path: str, timeout: float, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, int | None, bytes]:
        """One request and its answer: status, length of the JSON part if told, body."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        self._open = connection
        try:
            connection.connect()
            if self._aborted:  # while connecting, when there was no socket to shut down
                raise TransportError("the request was cut short")
            connection.request(method, path, body, {"Connection": "close", **(headers or {})})
            response = connection.getresponse()
            length = response.getheader(_HEADER_LENGTH)
            return response.status, None if length is None else int(length), response.read()
        except TimeoutError as error:
            raise TransportError(f"no answer within {timeout:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TransportError(f"{type(error).__name__}: {error}") from error
        finally:
            self._open = None
            connection.close()


def _pack(array: npt.NDArray[np.generic]) -> bytes:
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel().tolist())
    return np.ascontiguousarray(array, dtype=_DTYPES[_NAMES[array.dtype]]).tobytes()


def _unpack_answer(body: bytes, header_length: int | None) -> Arrays:
    """Read outputs that are binary, or JSON where a server does not do binary ones."""
    header = _json(body[:header_length])
    rest = memoryview(body)[len(body) if header_length is None else header_length :]
    answer: Arrays = {}
    for tensor in header["outputs"]:
        datatype, shape = tensor["datatype"], tensor["shape"]
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.array(tensor["data"], dtype=_DTYPES.get(datatype, object))
            answer[tensor["name"]] = values.reshape(shape)
            continue
        data, rest = rest[:size], rest[size:]
        if datatype == "BYTES":
            items = np.empty(int(np.prod(shape)), dtype=object)
            items[:] = list(_byte_items(data))
            answer[tensor["name"]] = items.reshape(shape)
        else:
            answer[tensor["name"]] = np.frombuffer(data, dtype=_DTYPES[datatype]).reshape(shape)
    return answer


def _byte_items(data: memoryview) -> Iterator[bytes]:
    while data:
        (length,) = struct.unpack_from("<I", data)
        yield bytes(data[4 : 4 + length])
        data = data[4 + length :]


def _json(body: bytes) -> dict[str, Any]:
    value = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _error_text(body: bytes) -> str:
    """The message of an error answer, at most 300 characters; of a traceback, the last exception."""
    text = body.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["error"])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    exceptions = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return (exceptions or lines or ["(no message)"])[-1][:300]

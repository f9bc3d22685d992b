"""Two pipes between a program and its tests, over which one asks and the other answers, in JSON."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

_MOST_BYTES = 1 << 24


class ProgramEnded(BaseException):
    """The other side is gone.

    No `Exception`: a test that waits for an error of the program does not take it for one.
    """


class Link:
    """One end.

    Args:
        reading: descriptor of the pipe that is read.
        writing: descriptor of the pipe that is written.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self.is_broken = False

    def send(self, message: Any) -> None:
        """Send something that JSON has.

        Raises:
            ProgramEnded: nobody reads any more.
            ValueError: it is too long.
        """
        data = json.dumps(message).encode()
        if len(data) > _MOST_BYTES:
            raise ValueError(f"a message of {len(data)} bytes; {_MOST_BYTES} are the most")
        data = struct.pack("=I", len(data)) + data
        try:
            while data:
                data = data[os.write(self._writing, data) :]
        except OSError:
            raise self._broken() from None

    def receive(self) -> Any:
        """Wait for a message.

        Raises:
            ProgramEnded: nobody writes any more, or something that is no message.
        """
        (size,) = struct.unpack("=I", self._read(4))
        if size > _MOST_BYTES:
            raise self._broken()
        data = self._read(size)
        try:
            return json.loads(data)
        except (ValueError, RecursionError, MemoryError):
            raise self._broken() from None

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self._reading, min(size, 1 << 16))
            if not part:
                raise self._broken()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _broken(self) -> ProgramEnded:
        self.is_broken = True
        return ProgramEnded()

"""A file that takes another's place: whole and durably, or not at all."""

import os
import tempfile
from types import TracebackType
from typing import BinaryIO


class Replacement:
    """What is written within `with` is at `path` afterwards; after an error `path` is as it was, and nothing is left.

    The file is made by the constructor, beside `path` and for the caller alone; it may be given an owner and a mode
    before it is in its place. Every step may raise OSError.
    """

    def __init__(self, path: str, *, prefix: str = "") -> None:
        self._path = path
        self._folder = os.path.dirname(path) or "."
        descriptor, self.temporary = tempfile.mkstemp(prefix=prefix or f"{os.path.basename(path)}.", dir=self._folder)
        self._file: BinaryIO = open(descriptor, "wb")  # noqa: SIM115 - closed on the way out

    def __enter__(self) -> BinaryIO:
        """The file to write."""
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put it in its place, or throw it away."""
        try:
            with self._file:
                if error is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if error is None:
                os.replace(self.temporary, self._path)
        except BaseException:
            os.unlink(self.temporary)
            raise
        if error is not None:
            os.unlink(self.temporary)
            return
        # The name is as lasting as the content from here on.
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""A fresh ext4 file system on an image file, so that every server works on the same kind of disk.

A sync still reaches the real disk: the loop device passes flushes on. What an image file holds at a moment is what a
power cut at that moment would leave.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self


class Folder:
    """A plain folder to work in, gone at the end; its disk is whatever it lies on. Use as a context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pillarbox-bench-", dir="/var/tmp"))
        self.folder.chmod(0o755)
        self.root = self.folder / "disk"
        self.root.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Image(Folder):
    """An image file with a file system, mounted at `root`. Needs root."""

    def __init__(self, megabytes: int = 4096) -> None:
        super().__init__()
        self.file = self.folder / "image"
        self.megabytes = megabytes

    def __enter__(self) -> Self:
        with self.file.open("wb") as file:
            file.truncate(self.megabytes << 20)
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self.file))
        self._mount(self.file)
        self.root.chmod(0o755)
        return self

    def __exit__(self, *exc: object) -> None:
        _run("umount", "-l", str(self.root), check=False)
        super().__exit__()

    def cut_power(self) -> None:
        """Go on with a copy of what is on the image now: everything that was not written out is gone."""
        copy = self.folder / "image-after"
        _run("cp", "--sparse=always", str(self.file), str(copy))
        _run("umount", "-l", str(self.root))
        self._mount(copy)

    def _mount(self, file: Path) -> None:
        _run("mount", "-o", "loop", str(file), str(self.root))


def fresh_disk(megabytes: int = 4096) -> Folder:
    """What this user can have: an image as root, else a folder."""
    return Image(megabytes) if os.geteuid() == 0 else Folder()


def _run(*argv: str, check: bool = True) -> None:
    subprocess.run(argv, check=check, capture_output=True)

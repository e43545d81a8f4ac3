"""A real FUSE file system with one file in it, spoken to the kernel through /dev/fuse: `python fuse_folder.py ...`.

What a network or user-space file system does with a model: it takes reads past the page cache or refuses them, and it
can begin to fail. The protocol is that of Linux' include/uapi/linux/fuse.h, version 7.31; only what reading takes.
It runs as a process of its own: a page fault on its file must never wait for the process that has the fault.
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NAME = "m.gguf"
_FORGET, _BATCH_FORGET = 2, 42
"""Requests that take no answer."""
_FILE_NODE = 2
_REQUEST = struct.Struct("<IIQQIIIHH")
_MOST_READ = 128 << 10
_SECONDS = 3600


class Folder:
    """Answers to the kernel's requests, about a folder that holds `NAME` with the bytes of `backing`."""

    def __init__(self, backing: Path, refuses_direct: bool, broken: Path) -> None:
        self._file = os.open(backing, os.O_RDONLY)
        self._refuses_direct = refuses_direct
        self._broken = broken

    def answer(self, kind: int, node: int, body: bytes) -> bytes:
        """
        Raises:
            OSError: that is the answer.
        """
        match kind:
            case 26:  # INIT
                return struct.pack("<IIIIHHIIHH8I", 7, 31, _MOST_READ, 1, 16, 12, _MOST_READ, 1, 32, 0, *[0] * 8)
            case 1:  # LOOKUP
                if body.rstrip(b"\0").decode() != NAME:
                    raise OSError(errno.ENOENT, "")
                return struct.pack("<QQQQII", _FILE_NODE, 0, _SECONDS, _SECONDS, 0, 0) + self._attributes(_FILE_NODE)
            case 3:  # GETATTR
                return struct.pack("<QII", _SECONDS, 0, 0) + self._attributes(node)
            case 14:  # OPEN
                (flags, _) = struct.unpack_from("<II", body)
                if flags & os.O_DIRECT and self._refuses_direct:
                    raise OSError(errno.EINVAL, "")
                return struct.pack("<QII", 1, 0, 0)
            case 15:  # READ
                _, offset, size = struct.unpack_from("<QQI", body)
                if self._broken.exists():
                    raise OSError(errno.EIO, "")
                return os.pread(self._file, size, offset)
            case 17:  # STATFS
                return struct.pack("<5Q4I6I", 1 << 20, 0, 0, 8, 0, 4096, 255, 4096, 0, *[0] * 6)
            case 27:  # OPENDIR
                return struct.pack("<QII", 2, 0, 0)
            case 28:  # READDIR
                return b""
            case 18 | 25 | 29 | 34 | 38:  # RELEASE, FLUSH, RELEASEDIR, ACCESS, DESTROY
                return b""
        raise OSError(errno.ENOSYS, "")

    def _attributes(self, node: int) -> bytes:
        of_file = node == _FILE_NODE
        size = os.fstat(self._file).st_size if of_file else 0
        mode = (stat.S_IFREG | 0o444) if of_file else (stat.S_IFDIR | 0o555)
        return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def serve(place: Path, backing: Path, refuses_direct: bool, broken: Path) -> None:
    """Mount, say so on standard output, and answer until it is unmounted."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"folder", os.fsencode(place), b"fuse", 0, options.encode()):
        raise SystemExit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    folder = Folder(backing, refuses_direct, broken)
    while True:
        try:
            request = os.read(device, _MOST_READ + 4096)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            raise
        _, kind, unique, node, *_ = _REQUEST.unpack_from(request)
        if kind in (_FORGET, _BATCH_FORGET):
            continue
        try:
            reply, code = folder.answer(kind, node, request[_REQUEST.size :]), 0
        except OSError as error:
            reply, code = b"", -(error.errno or errno.EIO)
        os.write(device, struct.pack("<IiQ", 16 + len(reply), code, unique) + reply)


@contextlib.contextmanager
def fuse_folder(place: Path, backing: Path, refuses_direct: bool = False, broken: Path | None = None) -> Iterator[str]:
    """A mount at `place`; yields "" or why there can be none here. Reads fail with EIO from when `broken` exists."""
    broken = broken or place.with_name("broken")
    command = [sys.executable, __file__, str(place), str(backing), str(int(refuses_direct)), str(broken)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            yield "" if process.stdout.readline() == "mounted\n" else process.stderr.read().strip()
        finally:
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
            process.kill()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "1", Path(sys.argv[4]))

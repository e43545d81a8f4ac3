"""Tells what this user's dfqs wrote on this machine from what came with a folder.

A journal lies beside a model, so it can be part of a download, and what it says is carried out. Each record of one is
therefore sealed: HMAC-SHA256 with a key that lies outside every such folder, in the cache directory, readable by this
user alone. Nobody who can write the folder but not the cache can make a seal.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.storage.atomic import fsync_directory, partial_path, publish_file
from dfqs.storage.cache import NoHome, cache_directory

KEY_BYTES = 32
SEAL_DIGITS = 32
"""Hexadecimal; 128 bits, which nobody finds by trying."""
_ELSEWHERE = "set DFQS_CACHE to a directory of yours"


def key_path() -> Path:
    """Where the key lies (or will)."""
    return cache_directory() / "journal-key"


class Sealer:
    """Makes and checks seals of one kind of record. The key is read once, when it is first needed.

    Args:
        purpose: what kind of record it is; a seal of one kind is none of another.
    """

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose
        self._key: bytes | None = None

    def make_seal(self, data: bytes) -> str:
        """The seal of `data`. The first call on a machine makes the key.

        Raises:
            UsageError: the key can be neither read nor made.
        """
        if self._key is None:
            self._key = _make_key()
        return _seal(self._key, self._purpose, data)

    def is_sealed(self, data: bytes, seal: str) -> bool:
        """Whether this user's dfqs made this seal of `data`; False too where there is no key (any more).

        Raises:
            UsageError: the key is there and cannot be used.
        """
        if self._key is None:
            self._key = _read_key()
        return self._key is not None and hmac.compare_digest(
            _seal(self._key, self._purpose, data).encode(), seal.encode()
        )


def _seal(key: bytes, purpose: str, data: bytes) -> str:
    return hmac.new(key, purpose.encode() + b"\0" + data, hashlib.sha256).hexdigest()[:SEAL_DIGITS]


def _read_key() -> bytes | None:
    try:
        path = key_path()
    except NoHome:
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"the key of journals, {path}, cannot be read ({error.strerror}); {_ELSEWHERE}") from None
    try:
        state = os.fstat(handle)
        key = os.read(handle, KEY_BYTES + 1) if stat.S_ISREG(state.st_mode) else b""
    finally:
        os.close(handle)
    if len(key) != KEY_BYTES or state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise UsageError(
            f"{path} is not a key of {KEY_BYTES} bytes that is this user's and nobody else's to read; delete it (an "
            "unfinished merge then goes on with --trust-journal only)"
        )
    return key


def _make_key() -> bytes:
    """The key; made where there is none, whole or not at all, and only once however many processes try."""
    if (key := _read_key()) is not None:
        return key
    path = key_path()
    temporary = partial_path(path, secrets.token_hex(4))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(handle, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(handle)
            # Another process's key that came first stays.
            with contextlib.suppress(UsageError):
                publish_file(temporary, path, durable=False)
            fsync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"the key of journals cannot be kept in {path.parent} ({error.strerror}), and without it an interrupted "
            f"run could not be told from a stranger's; {_ELSEWHERE}"
        ) from error
    found = _read_key()
    if found is None:
        raise UsageError(f"the key of journals, {path}, was removed while it was made; run this again")
    return found

"""What others put where dfqs writes: pipes, links and replaced files neither stop it nor get through."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dfqs.errors import IntegrityError, UsageError
from dfqs.storage.atomic import atomic_writer, remove_abandoned_partials, write_bytes_atomic
from dfqs.storage.locks import is_locked


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        # A socket's address is short.
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def make_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


FOREIGN = pytest.mark.parametrize("make", [make_pipe, make_socket, make_link])


@FOREIGN
def test_partial_that_is_no_file_neither_hangs_a_writer_nor_is_removed(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    foreign = tmp_path / ".f.00000000.partial"
    make(foreign)

    write_bytes_atomic(tmp_path / "f", b"x")

    assert (tmp_path / "f").read_bytes() == b"x"
    assert foreign.is_symlink() or foreign.exists()


@FOREIGN
def test_lock_of_what_is_no_file_is_answered_at_once(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "lock")

    assert not is_locked(tmp_path / "lock")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("make", [make_pipe, make_socket])
def test_output_that_is_no_file_is_not_replaced(make: Callable[[Path], None], overwrite: bool, tmp_path: Path) -> None:
    make(tmp_path / "f")

    with pytest.raises(UsageError, match="a pipe, a socket or a device"):
        write_bytes_atomic(tmp_path / "f", b"x", overwrite=overwrite)

    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_link_named_like_a_partial_does_not_have_its_target_removed(tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.write_bytes(b"x")
    (tmp_path / ".f.00000000.partial").symlink_to(precious)

    remove_abandoned_partials(tmp_path / "f")

    assert precious.exists()


def test_file_put_in_place_of_the_one_that_was_written_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="replaced while it was written"), atomic_writer(tmp_path / "f") as file:
        file.write(b"ours")
        (temporary,) = tmp_path.glob(".f.*.partial")
        temporary.unlink()
        temporary.write_bytes(b"theirs")

    assert not (tmp_path / "f").exists()

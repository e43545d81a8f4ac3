"""Pieces of work shared by threads: whoever is free takes the next one, and the first failure ends them all."""

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dfqs.progress import Progress

Piece = TypeVar("Piece")


def share_out(
    pieces: Iterable[Piece], work: Callable[[Piece, threading.Event], None], *, threads: int, name: str
) -> None:
    """Do all of it, in the order given; returns when it is done.

    Args:
        work: done to each piece, and given what is set when another has failed and this one is not wanted any more.
        name: of the threads.

    Raises:
        What `work` raised, or KeyboardInterrupt; nothing is under way any more then.
    """
    waiting: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    for piece in pieces:
        waiting.put(piece)
    stop = threading.Event()

    def take() -> None:
        try:
            while not stop.is_set():
                try:
                    piece = waiting.get_nowait()
                except queue.Empty:
                    return
                work(piece, stop)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name) as pool:
        workers = [pool.submit(take) for _ in range(threads)]
        try:
            for worker in workers:
                worker.result()
        except BaseException:
            stop.set()
            raise


class SharedProgress:
    """Progress of what several threads do together."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So much more is done."""
        with self._lock:
            self._done += count
            self._progress(self._done, self._total)

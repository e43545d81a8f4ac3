"""Streaming under llama-server, which loads the model and computes with it by itself.

It computes a graph or two while it loads, to find out what the model's cache can do. Before the first node of the first
one the file is mapped, and the experts are made to stream there.

Nobody asks after a graph whether all went well, and the server would make a word of whatever the logits hold then. So
where a byte could not be had, the thread that computes is never let go on: who serves is told, and ends the process.
"""

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Never

from dfqs.errors import RuntimeFailure
from dfqs.progress import Progress
from dfqs.runtime import abi
from dfqs.runtime.library import Library
from dfqs.runtime.loading import StreamFigures
from dfqs.streaming.lazy_map import lazy_mapping
from dfqs.streaming.opening import ExpertsOnDisk, plan_streaming, stream_mapped
from dfqs.streaming.settings import StreamSettings


class ServedExperts:
    """Experts that stream for a server in this process; see `dfqs.runtime.loading.ServerCompanion`.

    Args:
        paths: the file that the server loads, or all shards of the set in their order.
        settings, progress: as `open_streamed` takes them.

    Raises:
        UsageError: there is nothing to stream in this model.
    """

    def __init__(
        self,
        library: Library,
        paths: Sequence[Path],
        settings: StreamSettings,
        progress: Progress,
    ) -> None:
        self._library = library
        self._paths = tuple(paths)
        self._settings = settings
        self._progress = progress
        self._layout = plan_streaming(paths)
        self._is_lazy = False
        self._is_loading = True
        self._experts: ExpertsOnDisk | None = None
        self._error: BaseException | None = None
        self._function = abi.EVAL_CALLBACK(self._called)

    @property
    def callback(self) -> int:
        """Address of the function that must see every graph; valid while this object lives."""
        return ctypes.cast(self._function, ctypes.c_void_p).value or 0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around the server's start.

        Raises (at its end):
            RuntimeFailure: the experts do not stream.
        """
        with lazy_mapping(self._library.path) as is_lazy:
            self._is_lazy = is_lazy
            try:
                yield
            except RuntimeFailure:
                self.raise_pending()
                raise
        self._is_loading = False
        self.raise_pending()
        if self._experts is None or not self._experts.stream.has_seen_the_end:
            raise RuntimeFailure("llama-server does not compute this model as it is known to, so it cannot be streamed")

    def raise_pending(self) -> None:
        """Raise what ended the computation, if anything did."""
        if self._error is not None:
            raise self._error

    def figures(self) -> StreamFigures | None:
        """What streaming did up to now."""
        return self._experts.figures() if self._experts is not None else None

    def _called(self, pointer: Any, ask: bool, _data: Any) -> bool:
        if self._error is None:
            try:
                if self._experts is None:
                    self._open()
                assert self._experts is not None
                stream = self._experts.stream
                result = stream.called(pointer, ask)
                self._error = stream.error
                if self._error is None:
                    return result
            except BaseException as error:
                self._error = error
        if not self._is_loading:
            _stand_still()
        # What is computed while it loads is thrown away.
        return ask

    def _open(self) -> None:
        _keep_thread_state()
        self._experts = stream_mapped(
            self._layout,
            self._paths,
            self._settings,
            is_lazy=self._is_lazy,
            progress=self._progress,
        )
        self._experts.stream.attach(self._library)


def _stand_still() -> Never:
    while True:
        threading.Event().wait()


def _keep_thread_state() -> None:
    """Python makes a state for a thread that calls it, and throws it away when the call ends, unless one is held: the
    thread that computes calls for every node.
    """
    ctypes.pythonapi.PyGILState_Ensure()

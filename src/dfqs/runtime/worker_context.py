"""What a function called in a worker process gets as its first argument."""

import functools
from typing import Any

from dfqs.processors import default_threads
from dfqs.runtime import library as native
from dfqs.runtime.channel import Sender
from dfqs.runtime.omp_policy import LoadSample, settle_wait_policy
from dfqs.runtime.stop import StopFlag


class WorkerContext:
    """The worker, as seen by the function that runs in it."""

    def __init__(self, sender: Sender, threads: int | None, wait_policy: str | None, load: LoadSample) -> None:
        self._sender = sender
        self._wait_policy = wait_policy
        self._load = load
        self.threads = threads or default_threads()
        """CPU threads that a context takes unless told otherwise."""
        self.state: dict[str, Any] = {}
        """Kept between calls: a loaded model, say."""
        self.stop = StopFlag()
        """Set when the caller wants the call to end; long work that never decodes looks at it now and then."""

    @functools.cached_property
    def library(self) -> native.Library:
        """llama.cpp, loaded when first asked for."""
        policy = self.settle_wait_policy()
        library = native.load_library(self.stop)
        library.threads, library.omp_wait_policy = self.threads, policy
        return library

    def settle_wait_policy(self) -> str:
        """Choose how threads wait, for a library that is about to be loaded; see `dfqs.runtime.omp_policy`."""
        return settle_wait_policy(self._wait_policy, self.threads, self._load)

    def emit(self, event: Any) -> None:
        """Send `event` to the caller's `on_event`.

        Raises:
            Stopped: the caller wants the call to end.
        """
        self.stop.raise_if_requested()
        self._sender.send(("event", event))

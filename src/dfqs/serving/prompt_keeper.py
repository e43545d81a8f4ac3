"""Prompts that outlive a server: written to disk when nobody waits for it, read back before the next one is asked.

Of a model whose caches hold every token, the prompt of a slot is kept up to a multiple of its batches, and its answer
is not: behind that, the next server computes in the batches in which it would have computed from the beginning, and so
to the last digit what it would have. Of others all is kept, as their caches can only go on from where they are.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dfqs.errors import DfqsError
from dfqs.model.files import ModelFiles
from dfqs.runtime.choice import installed_version
from dfqs.serving.dispatch import Dispatch
from dfqs.serving.engine import ServerSettings
from dfqs.serving.engine_call import call_engine
from dfqs.serving.prompt_store import KeptPrompt, PromptStore

DEFAULT_BATCH_TOKENS = 512
"""Of llama-server (`n_ubatch`)."""
LEAST_TOKENS = 64
"""Fewer are computed as fast as they are read."""
_QUIET_S = 5.0
"""Without a request, before a prompt is written: a conversation goes on meanwhile."""
_LOOK_S = 1.0
_CALL_S = 60.0
_SLOTS_LIMIT_BYTES = 256 << 20
"""They show what was asked and answered."""


@dataclass(slots=True)
class PromptKeeper:
    """Writes and reads the prompts of one server.

    Args:
        dispatch: what stands in front of the server, and knows where it is and what it was asked.
        remark: told what a user should know.
        rolls_back: whether the model's caches can forget an end.
    """

    store: PromptStore
    settings: ServerSettings
    dispatch: Dispatch
    remark: Callable[[str], None]
    rolls_back: bool
    restored_tokens: int = 0
    restore_s: float = 0.0
    _seen: dict[int, int] = field(default_factory=dict)
    """Slot -> the request whose prompt was kept, or was not worth it."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: Any = None
    _lock: Any = field(default_factory=threading.Lock)

    def restore(self, engine: Path) -> None:
        """Give a server that just came up what was kept for its slots."""
        started = time.perf_counter()
        with self._lock:
            self._seen.clear()
            self.restored_tokens = 0
            for kept in self.store.read():
                if isinstance(kept, str):
                    self.remark(kept)
                elif kept.slot < self.settings.parallel:
                    self._give(engine, kept)
        self.restore_s = time.perf_counter() - started

    def start(self) -> None:
        """Keep prompts from now on, whenever it is quiet."""
        self._thread = threading.Thread(target=self._run, name="prompts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Keep what there is, and no more. Safe to call twice, or before `start`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self.keep()

    def keep(self) -> None:
        """Write prompts that were computed since."""
        with self._lock:
            engine = self.dispatch.engine.path
            if engine is None:
                return
            key = self.settings.api_key
            answer = call_engine(engine, "GET", "/slots", key=key, timeout_s=_CALL_S, limit_bytes=_SLOTS_LIMIT_BYTES)
            slots = answer.document() if answer is not None and answer.status == 200 else None
            for slot in slots if isinstance(slots, list) else ():
                try:
                    self._keep_slot(engine, slot)
                except (DfqsError, KeyError, TypeError, ValueError) as error:
                    why = (
                        error.sentence if isinstance(error, DfqsError) else f"of its slots llama-server says {error!r}"
                    )
                    self.remark(f"a prompt was not kept: {why}")

    def _run(self) -> None:
        engine, answered, quiet_since = self.dispatch.engine, 0, time.monotonic()
        while not self._stop.wait(_LOOK_S):
            if self.dispatch.under_way or engine.path is None:
                quiet_since = time.monotonic()
            elif engine.answered != answered and time.monotonic() - quiet_since >= _QUIET_S:
                answered = engine.answered
                self.keep()

    def _keep_slot(self, engine: Path, slot: Mapping[str, Any]) -> None:
        number, task = int(slot["id"]), slot.get("id_task")
        if slot["is_processing"] or task is None or self._seen.get(number) == task:
            return
        self._seen[number] = task
        tokens = int(slot["n_prompt_tokens"])
        wanted = self._whole_batches(tokens) if self.rolls_back else None
        if tokens < LEAST_TOKENS or wanted == 0:
            return
        name = self.store.name_for_saving(number)
        target = f"/slots/{number}?action=save"
        answer = call_engine(engine, "POST", target, {"filename": name}, key=self.settings.api_key, timeout_s=_CALL_S)
        if answer is None or answer.status != 200:
            self.remark("a prompt was not kept: llama-server could not write it")
        elif not self.store.keep(number, wanted):
            self.remark(f"a prompt of {tokens:,} tokens was not kept: it is larger than --prompt-cache-size")

    def _whole_batches(self, tokens: int) -> int:
        """Of a slot that holds so many tokens, those that make whole batches of the prompt; 0 where it is not known."""
        # The last token of an answer need not have been computed with.
        fitting = [prompt for prompt, written in list(self.dispatch.lengths) if prompt + written - tokens in (0, 1)]
        return fitting[-1] // self._batch_tokens * self._batch_tokens if fitting else 0

    def _give(self, engine: Path, kept: KeptPrompt) -> None:
        target = f"/slots/{kept.slot}?action=restore"
        asked = {"filename": kept.path.name}
        answer = call_engine(engine, "POST", target, asked, key=self.settings.api_key, timeout_s=_CALL_S)
        if answer is None or answer.status != 200:
            self.remark(f"{kept.path} was not restored: llama-server could not read it")
        else:
            self.restored_tokens += kept.tokens

    @property
    def _batch_tokens(self) -> int:
        return DEFAULT_BATCH_TOKENS if self.settings.speed is None else self.settings.speed.n_ubatch


def owner_of(model: ModelFiles, settings: ServerSettings) -> str:
    """Hash of everything that decides what bytes a prompt becomes."""
    files = [(found.st_size, found.st_mtime_ns) for found in map(Path.stat, model.paths)]
    known = {
        "files": files,
        "headers": [hashlib.sha256(header.raw).hexdigest() for header in model.headers],
        "runtime": installed_version(),
        "context": (settings.context_tokens, settings.parallel),
        "speed": None if settings.speed is None else asdict(settings.speed),
        "order": (settings.order.load_mode, settings.order.repack, settings.order.is_streamed),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

"""`pytest --quick`: everything that needs neither a model nor a process of its own, and nothing that does.

Which tests those are is not written down anywhere, so no list grows stale: a test that is given a model through a
fixture is left out, and one that starts a process is stopped in that moment, by the interpreter's own audit event, and
counted apart. It cannot pass: what it wanted to show needed the process. What computes for seconds says so itself, with
the mark `thorough`.
"""

from collections.abc import Generator

import pytest

MODELS = frozenset({"smollm2_gguf", "embedded_model", "tiny_deepseek4", "tiny_moe"})
"""Fixtures that are a model, or fetch one."""

STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"})
"""Audit events that come before a process does."""

NEEDS_MODEL, STARTS_PROCESS = "needs a model", "starts a process"

STOPPED = pytest.StashKey[str]()


class QuickRun:
    """Watches the tests of one session."""

    def __init__(self) -> None:
        self._item: pytest.Item | None = None

    def audit(self, event: str, _arguments: tuple[object, ...]) -> None:
        """For `sys.addaudithook`, which has no way back: between tests it lets everything through."""
        if event in STARTS and self._item is not None:
            self._item.stash[STOPPED] = STARTS_PROCESS
            pytest.skip(STARTS_PROCESS)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left_out = {
            item
            for item in items
            if MODELS.intersection(getattr(item, "fixturenames", ())) or item.get_closest_marker("thorough")
        }
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._item = item
        try:
            return (yield)
        finally:
            self._item = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        reason = item.stash.get(STOPPED, "")
        if reason and report.when != "teardown":
            # Whatever the test made of the refusal (a thread or an `except` may have swallowed it) is no result.
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, f"Skipped: {reason}")
        return report

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Counted apart, and not listed with the tests that this machine cannot run."""
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if reason in (STARTS_PROCESS, NEEDS_MODEL):
                return f"not quick ({reason})", "", "NOT QUICK"
        return None

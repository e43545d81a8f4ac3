"""Signing that was killed half way is finished by the next run, and nobody else's signature is replaced."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("model_signing")
from test_attest import attest, folder, verify

from dfqs.storage.atomic import write_bytes_atomic

__all__ = ["folder"]


def test_a_run_that_was_killed_between_its_two_files_is_finished_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DFQS_CACHE", str(folder / "cache"))

    def killed(path: Path, data: bytes, **options: Any) -> None:
        if path.name.endswith(".sigstore.json"):
            raise KeyboardInterrupt
        write_bytes_atomic(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr("dfqs.integrity.attest.write_bytes_atomic", killed)
        assert attest("m.gguf") == 130
    assert Path("m.gguf.sig").exists() and not Path("m.gguf.derivation.sigstore.json").exists()

    assert attest("m.gguf") == 0

    assert verify("m.gguf", "m.gguf.sig") == 0
    assert attest("m.gguf") == 2
    assert "exists already" in capsys.readouterr().err
    # Somebody else's signature, and one of a model that changed since, are no half of this run.
    Path("m.gguf.derivation.sigstore.json").unlink()
    Path("m.gguf.sig").write_bytes(Path("m.gguf.sig").read_bytes())
    assert attest("m.gguf") == 2

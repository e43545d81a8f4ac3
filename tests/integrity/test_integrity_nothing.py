"""Files without a tensor are found neither equal nor as recorded when nothing of them was compared."""

from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.integrity import hash_model
from dfqs.integrity.compare import verify_against
from dfqs.integrity.manifest import manifest_findings, manifest_of
from gguf_builder import SMALL_KEYS, write_small


def test_two_files_without_tensors_are_not_found_equal_byte_by_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said "all 0 tensors (0 B) are equal"."""
    paths = [write_small(tmp_path / name, tensors=(), keys=SMALL_KEYS) for name in ("a.gguf", "b.gguf")]

    found = verify_against(*paths)

    assert not found.equal
    assert [finding.code for finding in found.findings] == ["no-tensors"]
    assert run(["verify", str(paths[0]), "--against", str(paths[1])]) == 1
    assert "no byte was compared" in "".join(capsys.readouterr())


def test_a_manifest_of_no_tensors_agrees_by_the_hash_of_the_file_or_not_at_all(tmp_path: Path) -> None:
    hashes = hash_model(write_small(tmp_path / "a.gguf", tensors=()))
    manifest = manifest_of("a.gguf", hashes)

    assert manifest_findings(manifest, hashes) == ()
    assert [finding.code for finding in manifest_findings(manifest, hashes, content_only=True)] == ["no-tensors"]

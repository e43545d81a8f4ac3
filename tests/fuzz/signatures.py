"""Signed statements that anybody can have written, before and after their signature is looked at."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from dfqs.integrity.manifest import Provenance, SourceFile
from dfqs.integrity.statements import (
    MODEL_PREDICATE,
    SignatureRefused,
    SignedFile,
    derivation_of,
    derivation_statement,
    model_statement,
    read_derivation,
    read_model_statement,
)
from dfqs.model.making import Making
from dfqs.storage.documents import parse_json

HASH = "5" * 64
SIGNED = Path(__file__).parents[1] / "data" / "derivation.sig"
FILES = [SignedFile("m-00001-of-00002.gguf", HASH), SignedFile("m-00002-of-00002.gguf", "6" * 64)]


def derivation() -> dict[str, Any]:
    making = Making("IQ1_S-XL", '{"name": "IQ1_S-XL", "types": {"norms": "F32"}}', HASH, HASH, "0.1.0")
    shards = [SourceFile(name="s.gguf", bytes=1, sha256=HASH)]
    provenance = [Provenance(repo="owner/model", commit="7" * 40, shards=shards)]
    found = derivation_of(FILES, HASH, FILES, making, provenance)
    assert found is not None
    return derivation_statement(found)


def statements(_: Path) -> bytes:
    """Both kinds of statement, as they are read when their signature holds."""
    return json.dumps([model_statement("m", FILES), derivation()]).encode()


def read_statements(data: bytes, _: Path) -> None:
    """Each as what it says it is."""
    value = parse_json(data)
    for statement in value if isinstance(value, list) else [value]:
        if isinstance(statement, dict):
            of_model = statement.get("predicateType") == MODEL_PREDICATE
            read_model_statement(statement) if of_model else read_derivation(statement)


def bundle(_: Path) -> bytes:
    """A statement that was signed once; its private key is gone."""
    return SIGNED.read_bytes()


def read_bundle(data: bytes, scratch: Path) -> None:
    """Whether it holds."""
    place = scratch / "statement.sig"
    place.write_bytes(data)
    try:
        verifier().verify(place)
    except SignatureRefused as error:
        assert str(error)


@cache
def verifier() -> Any:
    """Of the key that signed it."""
    from dfqs.integrity.signing import StatementVerifier

    return StatementVerifier(SIGNED.with_suffix(".pub"))

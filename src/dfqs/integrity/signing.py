"""Signed statements, by the package `model-signing`, an extra: the one place that imports it.

A statement (in-toto, version 1) is signed in a DSSE envelope inside a Sigstore bundle, which is the form of OpenSSF
Model Signing 1.0; keys are ECDSA on the NIST curves, given as PEM. Nothing here asks a network. Of the package its
signers and verifiers of statements are used, which it calls its own, because a second statement is signed as the model
is: hence the exact version in pyproject.toml.
"""

import contextlib
import hashlib
import io
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dfqs.errors import FormatError, UsageError, printable
from dfqs.integrity.statements import SignatureRefused
from dfqs.storage.documents import parse_json, read_bounded

try:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from in_toto_attestation.v1 import statement as in_toto
    from model_signing._signing import sign_certificate, sign_ec_key, sign_sigstore_pb
    from sigstore_models.bundle.v1 import Bundle
except ImportError:
    raise UsageError("signatures need model-signing, which is not installed: pip install 'dfqs[attest]'") from None

BUNDLE_LIMIT_BYTES = 8 << 20
"""A signature over 65,535 shards has that many lines."""
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
PASSWORD_VARIABLE = "DFQS_KEY_PASSWORD"
PRIVATE_KEY_NAME, PUBLIC_KEY_NAME = "dfqs-signing.key", "dfqs-signing.pub"


class StatementSigner:
    """A private key, ready to sign.

    Args:
        key: PEM; where it is encrypted, its password stands in the environment (`PASSWORD_VARIABLE`).
        certificate: of the key; the signature then carries it, with `chain` (without the root, most of the time).

    Raises:
        UsageError: a file is missing, or is not what it should be.
    """

    def __init__(self, key: Path, certificate: Path | None = None, chain: Sequence[Path] = ()) -> None:
        for path in (key, *([certificate] if certificate is not None else []), *chain):
            _require_pem(path)
        password = os.environ.get(PASSWORD_VARIABLE)
        with _usable(f"{key} cannot be used to sign", f"an encrypted key wants its password in {PASSWORD_VARIABLE}"):
            if certificate is None:
                # The package says `str`, and hands it to what takes bytes.
                secret: Any = password.encode() if password else None
                self._signer: Any = sign_ec_key.Signer(key, secret)
            elif password:
                raise ValueError("a key that belongs to a certificate must not be encrypted")
            else:
                self._signer = sign_certificate.Signer(key, certificate, chain)
        self.public_key_sha256: str = _fingerprint(self._signer._private_key.public_key())

    def sign(self, statement: dict[str, Any]) -> bytes:
        """A statement, signed: a Sigstore bundle as JSON. Numbers in a predicate become floating-point."""
        subjects = [
            in_toto.ResourceDescriptor(entry["name"], digest=entry["digest"]).pb for entry in statement["subject"]
        ]
        made = in_toto.Statement(subjects, statement["predicateType"], statement["predicate"])
        bundle: str = self._signer.sign(SimpleNamespace(statement=made)).bundle.to_json()
        return bundle.encode() + b"\n"


class StatementVerifier:
    """A public key, or certificates that are trusted.

    Args:
        public_key: PEM.
        chain: PEM files with the trusted root, and what stands between it and the signer's.

    Raises:
        UsageError: neither or both, a file is missing, or is not what it should be.
    """

    def __init__(self, public_key: Path | None = None, chain: Sequence[Path] = ()) -> None:
        if (public_key is None) == (not chain):
            raise UsageError("give --public-key, or --certificate-chain: whose signature is to be trusted?")
        paths = [public_key] if public_key is not None else [*chain]
        for path in paths:
            _require_pem(path)
        with _usable(f"{', '.join(map(str, paths))} cannot be used to verify", "PEM is wanted, of an ECDSA key"):
            self._verifier: Any = (
                sign_ec_key.Verifier(public_key) if public_key is not None else sign_certificate.Verifier(paths)
            )
        self._by_key = public_key is not None

    def verify(self, path: Path) -> dict[str, Any]:
        """The statement in a file, if its signature holds.

        A certificate is held against the moment from which it is valid, as the format has no time of signing: an
        expired one still verifies, and revocation is not asked for.

        Raises:
            SignatureRefused: it does not.
            FormatError: the file is no signed statement.
            UsageError: there is no such file.
        """
        bundle = _read_bundle(path)
        if (bundle.verification_material.public_key is not None) != self._by_key:
            wanted = "--certificate-chain" if self._by_key else "--public-key"
            raise SignatureRefused(f"it was made with the other kind of key: give {wanted}")
        try:
            # The package prints where it should warn.
            with contextlib.redirect_stdout(io.StringIO()):
                kind, payload = self._verifier._verify_signed_content(sign_sigstore_pb.Signature(bundle))
        except Exception as error:
            raise SignatureRefused(_words(error)) from None
        statement = parse_json(payload, path=path)
        if kind != PAYLOAD_TYPE or not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
            raise FormatError("what is signed in it is no in-toto statement, version 1", path=path)
        return statement


def write_key_pair(directory: Path, write: Callable[[Path, bytes], None]) -> tuple[Path, Path, str]:
    """A new key on the curve P-256: private key, public key, and the latter's SHA-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths = directory / PRIVATE_KEY_NAME, directory / PUBLIC_KEY_NAME
    write(paths[0], private)
    write(paths[1], _public_pem(key.public_key()))
    return *paths, _fingerprint(key.public_key())


def _require_pem(path: Path) -> None:
    if b"-----BEGIN " not in read_bounded(path, BUNDLE_LIMIT_BYTES):
        raise UsageError(f"{path} is no PEM file; an ECDSA key, or its certificate, is wanted as PEM")


def _read_bundle(path: Path) -> Any:
    value = parse_json(read_bounded(path, BUNDLE_LIMIT_BYTES), path=path)
    material = value.get("verificationMaterial") if isinstance(value, dict) else None
    if not isinstance(material, dict) or "dsseEnvelope" not in value:
        raise FormatError("no signed statement (a Sigstore bundle with a DSSE envelope)", path=path)
    # Older signers leave these out, or say more; the package reads them so too.
    key = material.get("publicKey")
    material = {"tlogEntries": [], **material}
    if isinstance(key, dict):
        material["publicKey"] = {"hint": key.get("hint")}
    try:
        bundle: Any = Bundle.from_dict({**value, "verificationMaterial": material})
    except Exception as error:
        raise FormatError(f"no signed statement: {_words(error)}", path=path) from None
    if not bundle.dsse_envelope.signatures:
        raise FormatError("a statement that nobody signed", path=path)
    return bundle


def _public_pem(key: Any) -> bytes:
    pem: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem


def _fingerprint(key: Any) -> str:
    """As the bundle names a key: the SHA-256 of its PEM."""
    return hashlib.sha256(_public_pem(key)).hexdigest()


@contextlib.contextmanager
def _usable(what: str, hint: str) -> Any:
    """Whatever the package raises of a file that it cannot use, as a sentence."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {_words(error)}; {hint}") from None


def _words(error: Exception) -> str:
    return printable(textwrap.shorten(str(error), 200), 200) or type(error).__name__

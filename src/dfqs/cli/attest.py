"""`dfqs attest`: sign a model, and how it was made."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dfqs.cli.documents.attest import AttestDocument, SigningKeyDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.options import DryRun, Json, ModelIfAny, Overwrite
from dfqs.cli.output import emit, note, print_plain, warn
from dfqs.errors import IntegrityError, UsageError
from dfqs.integrity.attest import Attestation, attest, attestation_places, is_half_written, write_private
from dfqs.model.files import open_model
from dfqs.quantize.declared import class_findings


def command(
    model: ModelIfAny = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            help="Private key to sign with, PEM (ECDSA). The password of an encrypted one stands in DFQS_KEY_PASSWORD.",
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="Certificate of that key, PEM; the signature carries it.")
    ] = None,
    certificate_chain: Annotated[
        list[Path] | None,
        typer.Option("--certificate-chain", help="What stands between that certificate and its root, PEM."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The signature to write.", show_default="MODEL.sig"),
    ] = None,
    new_key: Annotated[
        Path | None, typer.Option("--new-key", help="Make a pair of keys in this directory, and nothing else.")
    ] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Sign a model's files (OpenSSF Model Signing), and how it was made: source, recipe, importance matrix, tool.

    Beside MODEL stand then MODEL.sig and MODEL.derivation.sigstore.json; `dfqs verify MODEL --attestation MODEL.sig`
    checks both, `model_signing verify` the first. A manifest is written where there is none. Nothing asks a network.

    Example: dfqs attest model.gguf --key dfqs-signing.key
    """
    if new_key is not None:
        if model is not None or key is not None:
            raise UsageError("--new-key makes keys and nothing else; sign with --key afterwards")
        _make_keys(new_key, json_, dry_run=dry_run)
        return
    if model is None or key is None:
        raise UsageError("name the model, and the key to sign it with (--key; `dfqs attest --new-key DIR` makes one)")
    if certificate_chain and certificate is None:
        raise UsageError("--certificate-chain is of a --certificate; give it too")
    made = _attest(model, key, certificate, certificate_chain or (), output, overwrite=overwrite, dry_run=dry_run)
    found = AttestDocument.of(str(model), made, written=not dry_run)
    emit(found, json_, lambda: _show(found))


def _attest(
    model: Path,
    key: Path,
    certificate: Path | None,
    chain: Sequence[Path],
    output: Path | None,
    *,
    overwrite: bool,
    dry_run: bool,
) -> Attestation:
    opened = open_model(model)
    opened.require_model()
    for finding in class_findings(opened.header):
        raise IntegrityError(f"{model} is not signed: {finding.name or 'it'}: {finding.message}. {finding.fix}")
    places = attestation_places(opened)
    if output is not None:
        places = replace(places, signature=output)
    inputs = (*opened.paths, key, certificate, *chain)
    for place in (places.signature, places.derivation):
        if not dry_run:
            check_output(place, inputs, overwrite=overwrite or is_half_written(opened, places))
    signer = _signing().StatementSigner(key, certificate, tuple(chain))
    with progress_bar("hashing") as progress:
        return attest(opened, signer, places, overwrite=overwrite, write=not dry_run, progress=progress)


def _make_keys(directory: Path, json_: bool, *, dry_run: bool) -> None:
    signing = _signing()
    names = (directory / signing.PRIVATE_KEY_NAME, directory / signing.PUBLIC_KEY_NAME)
    if not directory.is_dir():
        raise UsageError(f"no such directory: {directory}")
    for path in names:
        if path.exists() or path.is_symlink():
            raise UsageError(f"{path} exists already, and a key is never replaced; name another directory")
    if dry_run:
        note(f"would write {names[0]} and {names[1]}")
        return
    private, public, sha256 = signing.write_key_pair(directory, write_private)
    made = SigningKeyDocument(private_key=private, public_key=public, public_key_sha256=sha256)

    def show() -> None:
        print_plain(f"private key  {private} (yours alone; whoever has it signs in your name)")
        print_plain(f"public key   {public} (to publish)")
        print_plain(f"its SHA-256  {sha256}")

    emit(made, json_, show)


def _signing() -> Any:
    """The extra, where it is installed."""
    return importlib.import_module("dfqs.integrity.signing")


def _show(found: AttestDocument) -> None:
    print_plain(f"content_sha256  {found.content_sha256}")
    print_plain(f"signing key     {found.public_key_sha256}")
    if found.derivation is None:
        warn("neither its header nor a manifest says how it was made: its bytes are signed, and nothing else")
    elif found.derivation.class_ is not None:
        print_plain(f"derivation      {found.derivation.class_}, by dfqs {found.derivation.version}")
    else:
        print_plain(f"derivation      of {len(found.derivation.sources):,} recorded files")
    for path in (found.signature, found.statement):
        if path is not None:
            print_plain(f"wrote {path}")

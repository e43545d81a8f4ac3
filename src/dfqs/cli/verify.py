"""`dfqs verify`: is this file in order, and is it what it should be?"""

import contextlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dfqs.cli.documents.plain import verified
from dfqs.cli.drawing import progress_bar
from dfqs.cli.options import Json, Model
from dfqs.cli.output import emit, note, out, print_plain
from dfqs.cli.tables import Styled
from dfqs.errors import FormatError, UsageError, printable
from dfqs.gguf import Header
from dfqs.integrity.findings import Finding, Severity, has_errors
from dfqs.integrity.structure import Structure, verify_structure, zero_findings
from dfqs.model.classes import ClassMatch, recognise_class
from dfqs.model.files import ModelFiles, open_model
from dfqs.model.making import CLASS_KEY
from dfqs.model.snapshot import class_text
from dfqs.model.spec import read_model_spec
from dfqs.progress import Progress
from dfqs.units import format_bytes

if TYPE_CHECKING:
    from dfqs.cli.documents.integrity import VerifyDocument
    from dfqs.integrity.attest import Attested, Verifier
    from dfqs.integrity.compare import Comparison
    from dfqs.integrity.manifest import Manifest
    from dfqs.model.hashes import ModelHashes

ATTEST, MANIFEST = "dfqs.integrity.attest", "dfqs.integrity.manifest"
_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow"}


Attestation = Annotated[
    Path | None,
    typer.Option(
        "--attestation",
        help="Check a signature of `dfqs attest` or `model_signing`, and the statement of how the model was made that "
        "stands beside it (or the other way round).",
    ),
]
PublicKey = Annotated[Path | None, typer.Option("--public-key", help="Whose signature is trusted: a public key, PEM.")]
TrustedCertificates = Annotated[
    list[Path] | None,
    typer.Option("--certificate-chain", help="Or whose certificates: trusted root, and what stands below it, PEM."),
]


def command(
    model: Model,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Check every tensor's hash against this manifest.")
    ] = None,
    content: Annotated[
        bool, typer.Option("--content", help="Tensors count alone; other keys in the header are a warning.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Prove every tensor and key equal, byte by byte, to these shards (the first)."),
    ] = None,
    attestation: Attestation = None,
    public_key: PublicKey = None,
    certificate_chain: TrustedCertificates = None,
    hash_: Annotated[bool, typer.Option("--hash", help="Compute file_sha256 and content_sha256.")] = False,
    json_: Json = False,
) -> None:
    """Check a model: its form always, its bytes against a manifest or its shards when asked. Exit code 1 when it fails.

    Example: dfqs verify model.gguf --against model-00001-of-00003.gguf
    """
    if manifest is not None and against is not None:
        raise UsageError("give --manifest or --against, not both")
    # Records are not on the way of a look at a file's form; so with every module that is loaded here by its name.
    recorded = importlib.import_module(MANIFEST).read_manifest(manifest) if manifest is not None else None
    signatures = _signatures(attestation, public_key, certificate_chain or ())
    checked = _check(model, recorded, against, signatures, content=content, hash_=hash_)

    def show() -> None:
        print_findings(checked.findings)
        _print_class(checked.match, checked.declared)
        if checked.hashes is not None:
            if checked.hashes.file_sha256 is not None:
                print_plain(f"file_sha256     {checked.hashes.file_sha256}")
            print_plain(f"content_sha256  {checked.hashes.content_sha256}")
        _print_attested(checked.attested)
        if not checked.structure.readable and (against or manifest or hash_ or attestation):
            note("the bytes were not looked at: the file's form has to be right first")
        _print_outcome(model, checked, is_recorded=manifest is not None)

    emit(lambda: _document(model, checked, manifest, against), json_, show)
    if has_errors(checked.findings):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Checked:
    """What the checks gave; None where they were not made."""

    structure: Structure
    findings: list[Finding]
    hashes: "ModelHashes | None"
    comparison: "Comparison | None"
    match: ClassMatch | None
    declared: object
    attested: "Attested | None"


def _document(
    model: Path, checked: _Checked, manifest: Path | None, against: Path | None
) -> "VerifyDocument | dict[str, Any]":
    plain = verified(
        model,
        checked.structure.file_bytes,
        checked.findings,
        checked.hashes,
        checked.comparison,
        checked.match,
        ok=not has_errors(checked.findings),
        manifest=manifest,
        against=against,
    )
    if checked.attested is None:
        return plain
    documents = importlib.import_module("dfqs.cli.documents.integrity")
    signatures = documents.VerifiedSignatures.of(checked.attested)
    made: VerifyDocument = documents.VerifyDocument(**(plain | {"attestation": signatures}))
    return made


@dataclass(frozen=True, slots=True)
class _Signatures:
    """Signed statements, and whom to believe."""

    places: tuple[Path, ...]
    verifier: "Verifier"


def _signatures(given: Path | None, public_key: Path | None, chain: Sequence[Path]) -> _Signatures | None:
    if given is None:
        if public_key is not None or chain:
            raise UsageError("--public-key and --certificate-chain are for --attestation FILE; give it too")
        return None
    signing = importlib.import_module("dfqs.integrity.signing")
    places = importlib.import_module(ATTEST).statement_files(given)
    return _Signatures(places, signing.StatementVerifier(public_key, tuple(chain)))


def _check(
    model: Path,
    recorded: "Manifest | None",
    against: Path | None,
    signatures: _Signatures | None,
    *,
    content: bool,
    hash_: bool,
) -> _Checked:
    structure = verify_structure(model)
    findings = list(structure.findings)
    hashes, comparison, match, declared, attested = None, None, None, None, None
    if structure.readable and (header := structure.header) is not None:
        if CLASS_KEY in header.metadata:
            contradictions = importlib.import_module("dfqs.quantize.declared").class_findings(header)
            findings += contradictions
            if not contradictions:
                declared = header.metadata.text(CLASS_KEY)
        # Keys that describe no model have no class; what is wrong with them is among the findings.
        with contextlib.suppress(FormatError, UsageError):
            match = recognise_class(read_model_spec(header))
        if against is not None:
            with progress_bar("comparing") as progress:
                compare = importlib.import_module("dfqs.integrity.compare").verify_against
                found: Comparison = compare(model, against, content_only=content, progress=progress)
            comparison, findings = found, [*findings, *found.findings]
        if recorded is not None or hash_ or signatures is not None:
            with progress_bar("hashing") as progress:
                opened, parts = _hash(model, header, recorded, whole_set=signatures is not None, progress=progress)
            hashes = parts[0] if opened is None else opened.hashes()
            if opened is not None and signatures is not None:
                attested = importlib.import_module(ATTEST).verify_attestation(
                    opened, parts, hashes.content_sha256, signatures.places, signatures.verifier
                )
                findings += attested.findings
            findings += zero_findings(hashes.tensors)
            if recorded is not None:
                findings += importlib.import_module(MANIFEST).manifest_findings(
                    recorded, parts[0], content_only=content
                )
    return _Checked(structure, findings, hashes, comparison, match, declared, attested)


def _hash(
    model: Path, header: Header, recorded: "Manifest | None", *, whole_set: bool, progress: Progress
) -> "tuple[ModelFiles | None, tuple[ModelHashes, ...]]":
    """Hashes of the file; where a set of shards is meant, the set with those of all its files."""
    experts = recorded is not None and importlib.import_module(MANIFEST).wants_experts(recorded)
    if not whole_set:
        hash_model = importlib.import_module("dfqs.model.hashes").hash_model
        return None, (hash_model(model, header=header, experts=experts, progress=progress),)
    opened = open_model(model)
    return opened, opened.file_hashes(experts=experts, progress=progress)


def _print_class(match: ClassMatch | None, declared: object) -> None:
    if declared is not None:
        print_plain(f"class           {printable(str(declared))}, and every tensor is as its recipe says")
    elif match is not None:
        print_plain(f"class           {class_text(match.name if match.exact else None, match.name)}")
        for deviation in match.deviations:
            print_plain(f"  - {deviation}")


def _print_attested(attested: "Attested | None") -> None:
    if attested is None:
        return
    if attested.signed:
        print_plain("signature       holds, and is of these bytes")
    if (how := attested.derivation) is not None:
        made = (
            f"{how.class_name}, by dfqs {how.version}" if how.class_name else f"of {len(how.sources):,} recorded files"
        )
        print_plain(f"derivation      signed, and fits the file: {printable(made)}")
    elif len(attested.places) == 1:
        note("how it was made is not signed: no MODEL.derivation.sigstore.json stands beside the signature")


def print_findings(findings: Sequence[Finding]) -> None:
    """Each on a line with its severity and place; a fix that several share stands once, below the last of them."""
    for index, finding in enumerate(findings):
        where = f"{finding.name}: " if finding.name else ""
        at = f" (byte {finding.offset:,})" if finding.offset is not None else ""
        style = _STYLES[finding.severity]
        out.print(Styled(f"{finding.severity}: ", style), f"{where}{printable(finding.message, 600)}{at}")
        if index + 1 == len(findings) or findings[index + 1].fix != finding.fix:
            out.print(Styled(f"  {printable(finding.fix, 600)}", "dim"))


def _print_outcome(model: Path, checked: _Checked, *, is_recorded: bool) -> None:
    if has_errors(checked.findings):
        print_plain(f"{model}: FAILED")
        return
    held = ["its form is right"]
    if (compared := checked.comparison) is not None:
        equal = f"{compared.tensors:,} tensors ({format_bytes(compared.compared_bytes)})"
        held.append(f"all {equal} are equal to the shards', byte by byte")
    if checked.attested is not None:
        held.append("what was signed of it holds")
    if is_recorded:
        held.append("every tensor has the hash that the manifest records")
    print_plain(f"{model}: {format_bytes(checked.structure.file_bytes)}, {', '.join(held)}")

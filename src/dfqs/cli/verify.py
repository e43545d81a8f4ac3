"""`dfqs verify`: is this file in order, and is it what it should be?"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from dfqs.cli.drawing import progress_bar
from dfqs.cli.output import note, out, print_json, print_plain
from dfqs.errors import FormatError, UsageError, printable
from dfqs.gguf import read_header
from dfqs.integrity import Finding, ModelHashes, Severity, has_errors, hash_model, verify_against, verify_structure
from dfqs.integrity.manifest import manifest_findings, read_manifest, wants_experts
from dfqs.integrity.structure import zero_findings
from dfqs.model.classes import ClassMatch, recognise_class
from dfqs.model.description import describe_class
from dfqs.model.snapshot import class_text
from dfqs.model.spec import read_model_spec
from dfqs.quantize.declared import class_findings
from dfqs.quantize.metadata import CLASS_KEY
from dfqs.units import format_bytes

_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow"}


def command(
    model: Annotated[Path, typer.Argument(help="The .gguf file to check.", show_default=False)],
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
    hash_: Annotated[bool, typer.Option("--hash", help="Compute file_sha256 and content_sha256.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check a model: its form always, its bytes against a manifest or its shards when asked. Exit code 1 when it fails.

    Example: dfqs verify model.gguf --against model-00001-of-00003.gguf
    """
    if manifest is not None and against is not None:
        raise UsageError("give --manifest or --against, not both")
    recorded = read_manifest(manifest) if manifest is not None else None
    structure = verify_structure(model)
    findings = list(structure.findings)
    hashes, compared, match, declared = None, None, None, None
    if structure.readable:
        header = read_header(model)
        contradictions = class_findings(header)
        findings += contradictions
        if not contradictions:
            declared = header.metadata.text(CLASS_KEY)
        # Keys that describe no model have no class; what is wrong with them is among the findings.
        with contextlib.suppress(FormatError, UsageError):
            match = recognise_class(read_model_spec(header))
        if against is not None:
            with progress_bar("comparing") as progress:
                comparison = verify_against(model, against, content_only=content, progress=progress)
            compared = {"tensors": comparison.tensors, "bytes": comparison.compared_bytes}
            findings += comparison.findings
        if recorded is not None or hash_:
            experts = recorded is not None and wants_experts(recorded)
            with progress_bar("hashing") as progress:
                hashes = hash_model(model, experts=experts, progress=progress)
            findings += zero_findings(hashes.tensors)
            if recorded is not None:
                findings += manifest_findings(recorded, hashes, content_only=content)
    failed = has_errors(findings)
    if json_:
        record = describe_verify(model, structure.file_bytes, findings, hashes, compared, manifest, against)
        print_json({**record, **describe_class(match)})
    else:
        print_findings(findings)
        _print_class(match, declared)
        skipped = not structure.readable and bool(against or manifest or hash_)
        _print_outcome(model, structure.file_bytes, hashes, compared, recorded is not None, failed, skipped)
    if failed:
        raise typer.Exit(1)


def _print_class(match: ClassMatch | None, declared: object) -> None:
    if declared is not None:
        print_plain(f"class           {printable(str(declared))}, and every tensor is as its recipe says")
    elif match is not None:
        print_plain(f"class           {class_text(match.name if match.exact else None, match.name)}")
        for deviation in match.deviations:
            print_plain(f"  - {deviation}")


def print_findings(findings: Sequence[Finding]) -> None:
    """Each on a line with its severity and place; a fix that several share stands once, below the last of them."""
    for index, finding in enumerate(findings):
        where = f"{finding.name}: " if finding.name else ""
        at = f" (byte {finding.offset:,})" if finding.offset is not None else ""
        style = _STYLES[finding.severity]
        out.print(Text.assemble((f"{finding.severity}: ", style), f"{where}{printable(finding.message, 600)}{at}"))
        if index + 1 == len(findings) or findings[index + 1].fix != finding.fix:
            out.print(Text(f"  {printable(finding.fix, 600)}", style="dim"))


def describe_finding(finding: Finding) -> dict[str, Any]:
    """A finding for programs."""
    return {
        "severity": finding.severity.value,
        "code": finding.code,
        "message": finding.message,
        "fix": finding.fix,
        "offset": finding.offset,
        "name": finding.name,
    }


def describe_verify(
    model: Path,
    file_bytes: int,
    findings: list[Finding],
    hashes: ModelHashes | None,
    compared: dict[str, int] | None,
    manifest: Path | None,
    against: Path | None,
) -> dict[str, Any]:
    """The outcome for programs; what was not done is null."""
    return {
        "schema": "dfqs.verify/1",
        "model": str(model),
        "file_bytes": file_bytes,
        "ok": not has_errors(findings),
        "findings": [describe_finding(finding) for finding in findings],
        "file_sha256": hashes.file_sha256 if hashes else None,
        "content_sha256": hashes.content_sha256 if hashes else None,
        "manifest": str(manifest) if manifest else None,
        "against": str(against) if against else None,
        "compared": compared,
    }


def _print_outcome(
    model: Path,
    file_bytes: int,
    hashes: ModelHashes | None,
    compared: dict[str, int] | None,
    recorded: bool,
    failed: bool,
    skipped: bool,
) -> None:
    if hashes is not None:
        out.print(f"file_sha256     {hashes.file_sha256}", markup=False)
        out.print(f"content_sha256  {hashes.content_sha256}", markup=False)
    if skipped:
        note("the bytes were not looked at: the file's form has to be right first")
    if failed:
        out.print(f"{model}: FAILED", markup=False)
        return
    checked = ["its form is right"]
    if compared is not None:
        equal = f"{compared['tensors']:,} tensors ({format_bytes(compared['bytes'])})"
        checked.append(f"all {equal} are equal to the shards', byte by byte")
    if recorded:
        checked.append("every tensor has the hash that the manifest records")
    out.print(f"{model}: {format_bytes(file_bytes)}, {', '.join(checked)}", markup=False)

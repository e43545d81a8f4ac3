"""Every reader of what is stored or foreign as a target: a sound document, how to change it, and how it is read."""

import hashlib
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dfqs.gguf import read_header
from dfqs.gguf.file import GGUFFile
from dfqs.gguf.quants import dequantize
from dfqs.integrity import hash_model, verify_structure
from dfqs.integrity.manifest import manifest_findings, read_manifest
from dfqs.model.classes import CLASSES
from dfqs.model.spec import read_model_spec
from dfqs.pull.hub import _checked_file
from dfqs.pull.journal import KIND as PULL_JOURNAL
from dfqs.pull.journal import PullJournal
from dfqs.pull.selection import describe_choices, list_choices
from dfqs.quantize.imatrix_file import read_imatrix
from dfqs.quantize.journal import KIND as QUANTIZE_JOURNAL
from dfqs.quantize.journal import Journal as QuantizeJournal
from dfqs.quantize.logits_file import read_losses
from dfqs.quantize.recipe import class_from_record, read_recipe, recipe_record
from dfqs.records import parse_json, parse_record
from dfqs.report.markdown import render_markdown, render_summary
from dfqs.report.record import build_report
from dfqs.report.schema import Report
from dfqs.routing.coherence import diff_traces
from dfqs.routing.prompts import read_prompts
from dfqs.routing.stats import measure_stats
from fuzz import checkpoints, documents, services, signatures
from fuzz.mutate import STRINGS, Seal, mutate_bytes, mutate_gguf, mutate_json_text, mutate_lines, mutate_toml
from fuzz.terminal import shown

Mutate = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Target:
    """One reader."""

    name: str
    base: Callable[[Path], bytes]
    """A sound document; the directory is for files that making it takes."""
    mutate: Mutate
    read: Callable[[bytes, Path], None]
    """Gives the document to the reader, in an empty directory of its own."""
    seal: Seal = bytes
    """Makes a line of the sound document one that the reader believes, where its mutations are sealed too."""

    def sealed(self, base: bytes) -> bytes:
        """The sound document as it lies on a disk."""
        if self.seal is bytes:
            return base
        return b"".join(self.seal(line) + b"\n" for line in base.split(b"\n") if line)


def _file(data: bytes, scratch: Path, name: str) -> Path:
    path = scratch / name
    path.write_bytes(data)
    return path


def _read_gguf(data: bytes, scratch: Path) -> None:
    path = _file(data, scratch, "m.gguf")
    for finding in verify_structure(path).findings:
        assert isinstance(str(finding), str)
    read_model_spec(read_header(path))
    with GGUFFile(path) as file:
        for tensor in file.header.tensors[:8]:
            dequantize(tensor.type, file.read_tensor(tensor.name), tuple(tensor.shape))
    hash_model(path, experts=True)


def _read_manifest(data: bytes, scratch: Path) -> None:
    manifest = read_manifest(_file(data, scratch, "m.manifest.json"))
    manifest_findings(manifest, hash_model(_file(documents.gguf(scratch), scratch, "m.gguf"), experts=True))


def _read_recipe(data: bytes, scratch: Path) -> None:
    read_recipe(_file(data, scratch, "mine.toml"))


def _read_class_record(data: bytes, _: Path) -> None:
    class_from_record(parse_json(data))


def _read_imatrix(data: bytes, scratch: Path) -> None:
    read_imatrix(_file(data, scratch, "m.imatrix"))


def _read_logits(data: bytes, scratch: Path) -> None:
    read_losses(_file(data, scratch, "m.logits"))


def _read_trace(data: bytes, scratch: Path) -> None:
    path = _file(data, scratch, "m.route")
    diff_traces(path, path)
    measure_stats(path)


def _seal_trace(data: bytes) -> bytes:
    """The parts of a trace as they stand, each with the hash that its reader expects."""
    digest, out, at = hashlib.sha256(), b"", 0
    length = int.from_bytes(data[8:12], "little")
    while at < len(data):
        size = 12 + length if not at else 20 + int.from_bytes(data[at + 4 : at + 8], "little")
        part = data[at : at + size]
        digest.update(part)
        out += part + digest.digest()
        at += size + 32
    return out


def _mutate_trace(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[8:12], "little")
    action = rng.randrange(4)
    if action == 0:
        text = mutate_json_text(rng, data[12 : 12 + length])
        data = data[:8] + len(text).to_bytes(4, "little") + text + data[12 + length :]
    elif action == 1:
        at = 12 + length + 32
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        payload = zlib.compress(mutate_bytes(rng, zlib.decompress(data[at + 20 : at + 20 + size])))
        head = bytearray(data[at : at + 20])
        head[4:8] = len(payload).to_bytes(4, "little")
        data = data[:at] + head + payload + data[at + 20 + size :]
    elif action == 2:
        at = 12 + length + 32 + rng.randrange(20)
        data = data[:at] + rng.randbytes(1) + data[at + 1 :]
    else:
        return mutate_bytes(rng, data)
    return _seal_trace(data)


def _read_run(data: bytes, scratch: Path) -> None:
    report = build_report(documents.lay_out_run(data, scratch / "run"))
    render_markdown(report)
    render_summary(report)


def _read_report(data: bytes, _: Path) -> None:
    report = parse_record(data, Report)
    render_markdown(report)
    render_summary(report)


FINGERPRINT = "f" * 64


def _quantize_journal(_: Path) -> bytes:
    lines: list[dict[str, object]] = [{"schema": QUANTIZE_JOURNAL.schema, "fingerprint": FINGERPRINT}]
    lines += [{"tensor": name, "source_sha256": "a" * 64, "sha256": "b" * 64} for name in ("a", "b")]
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in [*lines, {"complete": True}])


def _seal_quantize_line(text: bytes) -> bytes:
    """With its checksum made anew, and a seal that is nobody's."""
    rest = b"0" * 32 + b" " + text
    return hashlib.sha256(rest).hexdigest()[:16].encode() + b" " + rest


def _read_quantize_journal(data: bytes, scratch: Path) -> None:
    path = _file(data, scratch, "m.journal")
    try:
        journal = QuantizeJournal(path, FINGERPRINT)
        journal.close()
        assert not journal.finished and not journal.complete, "a stranger's journal was believed"
    finally:
        path.unlink(missing_ok=True)


IDENTITY = {"files": ["m.gguf"]}


def _pull_journal(_: Path) -> bytes:
    identity = hashlib.sha256(json.dumps(IDENTITY, separators=(",", ":")).encode()).hexdigest()
    head = {
        "schema": PULL_JOURNAL.schema,
        "fingerprint": identity,
        "origin": {"repo": "owner/m"},
        "chunk_bytes": 1 << 20,
    }
    lines = [head, {"chunk": [0, 0], "sha256": "a" * 64}, {"dropped": [0, 0]}, {"verified": 0}]
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)


def _seal_pull_line(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text


def _read_pull_journal(data: bytes, scratch: Path) -> None:
    journal = PullJournal(_file(data, scratch, "m.gguf.pull-journal"))
    try:
        progressed = journal.start(IDENTITY, {"repo": "owner/m"}, 1 << 20)
        assert all(isinstance(number, int) for place in progressed.chunks for number in place), progressed
        assert all(isinstance(sha256, str) for sha256 in progressed.chunks.values()), progressed
        assert progressed.chunk_bytes > 0, progressed
        assert all(isinstance(number, int) for number in progressed.verified), progressed
    finally:
        journal.close()


def _prompts(_: Path) -> bytes:
    return b'{"text": "once"}\n{"prompt": "upon"}\n{"text": "a time", "id": [1, 2]}\n'


def _read_prompts(data: bytes, scratch: Path) -> None:
    read_prompts([_file(data, scratch, "prompts.jsonl")])


def _listing(_: Path) -> bytes:
    lfs = {"size": 5, "sha256": "a" * 64, "pointerSize": 130}
    files = [{"rfilename": f"m-0000{n}-of-00002.gguf", "size": 5, "lfs": lfs, "blobId": "b" * 40} for n in (1, 2)]
    return json.dumps([*files, {"rfilename": "small.gguf", "size": 7, "blobId": "c" * 40}]).encode()


def _read_listing(data: bytes, _: Path) -> None:
    entries = parse_json(data)
    kept = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            found = _checked_file(entry)
            if found is not None:
                assert found.name.isprintable()
                kept.append(found)
    describe_choices(list_choices(kept))


def _words(_: Path) -> bytes:
    return "a name [b]x[/b] :smile: \x1b[31m \x9b2J \u202e".encode()


def _mutate_words(rng: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    at = rng.randrange(len(text) + 1)
    control = chr(rng.choice((*range(32), *range(127, 160), 0x202E, 0x2066, 0x200F, 0x061C, 0x2028)))
    piece = rng.choice((*STRINGS, control, rng.choice("[]/:\\\t")))
    return (text[:at] + piece + text[at:])[-4000:].encode("utf-8", "surrogateescape")


def _show_words(data: bytes, _: Path) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for way, output in shown(text):
        bad = [c for c in output if c != "\n" and c != "\t" and (ord(c) < 32 or 127 <= ord(c) < 160)]
        assert not bad, f"{way} lets {bad[0]!r} through"


def _class_record(_: Path) -> bytes:
    return json.dumps(recipe_record(CLASSES["IQ1_S-XL"])).encode()


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("gguf", documents.gguf, mutate_gguf, _read_gguf),
        Target("manifest", documents.manifest, mutate_json_text, _read_manifest),
        Target("recipe", lambda _: documents.RECIPE.encode(), mutate_toml, _read_recipe),
        Target("class-record", _class_record, mutate_json_text, _read_class_record),
        Target("imatrix", documents.imatrix, mutate_gguf, _read_imatrix),
        Target("legacy-imatrix", documents.legacy_imatrix, mutate_bytes, _read_imatrix),
        Target("logits", documents.logits, mutate_gguf, _read_logits),
        Target("route-trace", documents.trace, _mutate_trace, _read_trace),
        Target("run", documents.run, mutate_lines, _read_run),
        Target("report", documents.report, mutate_json_text, _read_report),
        Target(
            "quantize-journal",
            _quantize_journal,
            lambda rng, data: mutate_lines(rng, data, _seal_quantize_line),
            _read_quantize_journal,
            _seal_quantize_line,
        ),
        Target(
            "imatrix-journal",
            checkpoints.imatrix_journal,
            checkpoints.mutate_imatrix_journal,
            checkpoints.read_imatrix_journal,
        ),
        Target(
            "pull-journal",
            _pull_journal,
            lambda rng, data: mutate_lines(rng, data, _seal_pull_line),
            _read_pull_journal,
            _seal_pull_line,
        ),
        Target(
            "merge-journal",
            services.merge_journal,
            services.mutate_merge_journal,
            services.read_merge_journal,
            services.seal_merge_line,
        ),
        Target("endpoint", services.sse, services.mutate_answer, services.read_answer),
        Target("template", services.template, services.mutate_template, services.render_template),
        Target("prompts", _prompts, mutate_lines, _read_prompts),
        Target("listing", _listing, mutate_json_text, _read_listing),
        Target("statements", signatures.statements, mutate_json_text, signatures.read_statements),
        Target("signature", signatures.bundle, mutate_json_text, signatures.read_bundle),
        Target("terminal", _words, _mutate_words, _show_words),
    )
}

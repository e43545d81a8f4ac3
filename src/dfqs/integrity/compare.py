"""A model against the shards it was made of, or against another file: byte by byte, tensor by tensor.

Bytes are compared, not hashes: it is faster, and says where the first difference is and in which experts.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dfqs.gguf import FileSource, Header, TensorInfo, read_header
from dfqs.gguf.layout import squeeze_shape
from dfqs.gguf.shard import SPLIT_KEYS
from dfqs.inplace.plan_resident import PADDING_KEY
from dfqs.integrity.findings import Finding, Severity, has_errors
from dfqs.model.files import open_model
from dfqs.model.hashes import is_expert_tensor
from dfqs.progress import Progress, no_progress
from dfqs.shards.plan import carried_key
from dfqs.storage.hashing import BUFFER_BYTES
from dfqs.storage.linux import usable_cpus
from dfqs.storage.sharing import SharedProgress, share_out

_MAKE_AGAIN = "Merge the shards again, or verify them against the hashes of their source; one of the two is damaged."
_LISTED_EXPERTS = 8
_FEW = 3
"""Of so few tensors each may have got lost; of more, not half."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of comparing a model with its shards."""

    tensors: int
    """Tensors that the shards have."""
    compared_bytes: int
    findings: tuple[Finding, ...]

    @property
    def equal(self) -> bool:
        """Every tensor is there, with the same type, shape and bytes, and no other."""
        return not has_errors(self.findings)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The same tensor in two files."""

    tensor: TensorInfo
    ours: int
    """Offset in the model."""
    theirs: int
    """Offset in its shard."""
    shard: FileSource


def verify_against(
    model: Path, first_shard: Path, *, content_only: bool = False, progress: Progress = no_progress
) -> Comparison:
    """Compare a model with a set of shards (or another single file), tensor by tensor, and its keys with the first's.

    Args:
        content_only: tensors decide alone; other keys (tokenizer, chat template) are a warning.
        progress: in bytes of the tensors.

    Raises:
        FormatError: a header lies, or a file is cut short meanwhile.
        ShardError: the shards do not make one model.
        UsageError: a file is missing or cannot be read.
    """
    with ExitStack() as stack:
        ours = stack.enter_context(FileSource(model))
        header = read_header(ours)
        findings: list[Finding] = []
        pairs: list[_Pair] = []
        seen: set[str] = set()
        shards = open_model(first_shard).shards
        for other in shards:
            path, shard_header = other.path, other.header
            shard = stack.enter_context(FileSource(path))
            for tensor in shard_header.tensors:
                seen.add(tensor.name)
                if finding := _description_finding(header, tensor, path):
                    findings.append(finding)
                    continue
                span = header.span(header.tensor(tensor.name))
                pairs.append(_Pair(tensor, span.offset, shard_header.span(tensor).offset, shard))
        for tensor in header.tensors:
            if tensor.name not in seen:
                message = "the model has it, the shards do not"
                findings.append(Finding("extra-tensor", message, _MAKE_AGAIN, name=tensor.name))
        if 2 * len(pairs) < max(len(seen), len(header.tensors)) and len(seen) >= _FEW:
            message = (
                f"{Path(first_shard).name} is of another model: of its {len(seen):,} tensors {len(pairs):,} are here "
                "with the same type and shape"
            )
            fix = "Give the shards that this model was made of, or the model that was made of these."
            return Comparison(len(seen), 0, (Finding("another-model", message, fix),))
        if not seen and not header.tensors:
            # Nothing compared is no agreement.
            fix = "Give the files that hold the model's tensors; two files without any are compared with `cmp`."
            findings.append(Finding("no-tensors", "neither side has a tensor, so no byte was compared", fix))
        findings += _compare_all(ours, pairs, progress)
        findings += _key_findings(header, shards[0].header, Severity.WARNING if content_only else Severity.ERROR)
        return Comparison(len(seen), sum(pair.tensor.length for pair in pairs), tuple(findings))


def _key_findings(header: Header, first: Header, severity: Severity) -> Iterator[Finding]:
    """Keys that a merge carries over from the first shard, and that are not as there."""
    ours, theirs = _carried_keys(header), _carried_keys(first)
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours:
            message = "the first shard has the key, the model does not"
        elif name not in theirs:
            message = "the model has the key, the first shard does not"
        elif ours[name] != theirs[name]:
            message = "the key's value is not the first shard's"
        else:
            continue
        yield Finding("key", message, _MAKE_AGAIN, severity=severity, name=name)


def _carried_keys(header: Header) -> dict[str, bytes]:
    """Each key's bytes as a merge writes them."""
    return {
        entry.name: carried_key(header, entry).encode()
        for entry in header.entries
        if entry.name not in (*SPLIT_KEYS, PADDING_KEY)
    }


def _description_finding(header: Header, tensor: TensorInfo, path: Path) -> Finding | None:
    if not header.has_tensor(tensor.name):
        return Finding("missing-tensor", f"it is in {path.name}, not in the model", _MAKE_AGAIN, name=tensor.name)
    own = header.tensor(tensor.name)
    if (own.type, squeeze_shape(own.shape)) != (tensor.type, squeeze_shape(tensor.shape)):
        message = (
            f"is {own.type.name} {list(own.shape)} in the model, {tensor.type.name} {list(tensor.shape)} in {path.name}"
        )
        return Finding("description", message, _MAKE_AGAIN, name=tensor.name)
    return None


def _compare_all(ours: FileSource, pairs: Sequence[_Pair], progress: Progress) -> list[Finding]:
    """Compare on all cores; findings in the order of the shards."""
    found: list[Finding | None] = [None] * len(pairs)
    done = SharedProgress(progress, sum(pair.tensor.length for pair in pairs))

    def compare_one(index: int, stop: threading.Event) -> None:
        found[index] = _compare(ours, pairs[index], done.add)

    share_out(range(len(pairs)), compare_one, threads=usable_cpus(), name="compare")
    return [finding for finding in found if finding is not None]


def _compare(ours: FileSource, pair: _Pair, count: Callable[[int], None]) -> Finding | None:
    """One tensor: the first byte that differs, and in which experts there is a difference."""
    tensor, first = pair.tensor, -1
    slice_bytes = tensor.length // tensor.shape[2] if is_expert_tensor(tensor) else 0
    experts: set[int] = set()
    for start in range(0, tensor.length, BUFFER_BYTES):
        length = min(BUFFER_BYTES, tensor.length - start)
        a = ours.read_exactly(pair.ours + start, length)
        b = pair.shard.read_exactly(pair.theirs + start, length)
        if a != b:
            first = start + _first_difference(a, b) if first < 0 else first
            experts.update(_experts_that_differ(a, b, start, slice_bytes))
        count(length)
    if first < 0:
        return None
    where = f" in {_expert_list(sorted(experts))}" if experts else ""
    return Finding(
        "differs",
        f"its bytes differ from {pair.shard.path.name}{where}, the first at byte {first:,} of the tensor",
        _MAKE_AGAIN,
        offset=pair.ours + first,
        name=tensor.name,
    )


def _first_difference(a: bytes, b: bytes) -> int:
    """Index of the first byte that differs, by halving."""
    low, high = 0, len(a)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if a[low:middle] != b[low:middle] else (middle, high)
    return low


def _experts_that_differ(a: bytes, b: bytes, start: int, slice_bytes: int) -> Iterator[int]:
    """Experts with a difference in a piece that begins at byte `start` of their tensor."""
    position = 0
    while slice_bytes and position < len(a):
        expert, inside = divmod(start + position, slice_bytes)
        end = min(position + slice_bytes - inside, len(a))
        if a[position:end] != b[position:end]:
            yield expert
        position = end


def _expert_list(experts: Sequence[int]) -> str:
    if len(experts) == 1:
        return f"expert {experts[0]}"
    shown = ", ".join(str(expert) for expert in experts[:_LISTED_EXPERTS])
    more = f" and {len(experts) - _LISTED_EXPERTS} more" if len(experts) > _LISTED_EXPERTS else ""
    return f"experts {shown}{more}"

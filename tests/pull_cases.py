"""What the tests of pull share: a repository of shards, the merge they must become, and impatient options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.gguf import GGMLType
from dfqs.pull import Hub, PullPlan, PullResult, RetryPolicy, plan_pull, pull
from dfqs.shards import merge, plan_merge
from hub_server import FakeHub
from shard_inputs import Tensor, pack_model, string_entry, u32_entry, write_shards

CHUNK_BYTES = 64 << 10
HASTY = RetryPolicy(attempts=4, first_wait_s=0.01, longest_wait_s=0.05, stall_s=0.6)

ENTRIES = [
    string_entry("general.architecture", "llama"),
    u32_entry("llama.block_count", 6),
    u32_entry("llama.context_length", 128),
    u32_entry("llama.embedding_length", 256),
]


def tensors() -> list[Tensor]:
    """Some 2.6 MB; the odd lengths leave padding between tensors."""
    found: list[Tensor] = [("token_embd.weight", (256, 400), GGMLType.Q8_0)]
    for layer in range(6):
        found += [
            (f"blk.{layer}.attn_norm.weight", (256,), GGMLType.F32),
            (f"blk.{layer}.odd.bias", (33,), GGMLType.F32),
            (f"blk.{layer}.ffn_up_exps.weight", (256, 256, 6), GGMLType.Q8_0),
        ]
    return found


@dataclass
class Repository:
    """Shards as a fake Hub serves them, and the bytes that a pull of them must give."""

    hub: FakeHub
    shards: list[Path]
    merged: bytes

    @property
    def remote_bytes(self) -> int:
        return sum(len(data) for data in self.hub.files.values())

    def client(self, token: str | None = None) -> Hub:
        return Hub(self.hub.endpoint, token or "none", HASTY)

    def plan(self, chunk_bytes: int = CHUNK_BYTES, pattern: str | None = None) -> PullPlan:
        plan = plan_pull(
            self.client(), self.hub.repo, pattern=pattern, chunk_bytes=chunk_bytes, retry=HASTY, connections=3
        )
        self.hub.reset_counts()
        return plan

    def pull(self, out: Path, plan: PullPlan | None = None, **options: Any) -> PullResult:
        options.setdefault("use_cache", False)
        return pull(plan or self.plan(), self.client(), out, connections=3, retry=HASTY, **options)


def write_repository(directory: Path) -> tuple[list[Path], bytes]:
    """Three shards, and their merge."""
    all_tensors = tensors()
    shards = write_shards(directory / "shards", ENTRIES, [all_tensors[:4], all_tensors[4:11], all_tensors[11:]])
    merge(plan_merge(shards[0]), directory / "merged.gguf")
    return shards, (directory / "merged.gguf").read_bytes()


def single_model() -> bytes:
    return pack_model(ENTRIES, tensors()[:6])

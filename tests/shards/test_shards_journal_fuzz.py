"""Journals with any value in any place: refused with a sentence or read, and never an exception of another kind."""

import copy
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfqs.errors import IntegrityError
from dfqs.inplace.journal import KIND, SCHEMA, Journal, journal_path
from dfqs.inplace.plan_resident import plan_in_place
from dfqs.shards import plan_merge
from dfqs.storage.disk import LocalDisk
from dfqs.storage.lines import encode_line
from shard_inputs import tiny_entries, tiny_tensors, write_shards

ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, False, -1, 0, 1, 2**62, 2**63, 2**64 - 1, 1.5, 1e308, "", "x", "[/x]", "AAAA", [], {}]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.lists(st.integers(-2, 2**63), max_size=5),
)
STEP = {
    "state": "moving",
    "copy": 0,
    "done": 0,
    "shard": 0,
    "sha256": "a" * 64,
    "free": [0, 0, 1, 1],
    "working": {"device": 1, "inode": 1, "bytes": 1, "modified_ns": 1, "changed_ns": 1},
}
NOTE = {"known": 0, "stamps": [STEP["working"]]}


@pytest.fixture(scope="module", name="records")
def records_fixture(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    tensors = tiny_tensors()
    first, *_ = write_shards(tmp_path_factory.mktemp("in"), tiny_entries(), [tensors[:3], tensors[3:]])
    job = plan_in_place(plan_merge(first), 4096, "punch").job
    return [{"schema": SCHEMA, "owner": os.geteuid(), **job.to_json()}, STEP, NOTE, {"refused": 1}]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value can be changed."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.extend(places(inner, (*path, key)))
    return found


@pytest.mark.thorough
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_any_place_is_refused_with_a_sentence_or_read(
    data: st.DataObject, records: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    records = copy.deepcopy(records)
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from([place for place in places(records) if len(place) > 1]))
        if way == [0] and last == "schema":
            continue
        target: Any = records
        for step in way:
            target = target[step]
        if isinstance(target, dict) and data.draw(st.booleans()):
            del target[last]
        else:
            target[last] = data.draw(ODD)
    out = tmp_path_factory.mktemp("fuzz") / "out.gguf"
    text, seal = b"", ""
    for record in records:
        line, seal = encode_line(record, seal, sealer=KIND.sealer())
        text += line
    journal_path(out).write_bytes(text)

    try:
        journal = Journal.open(LocalDisk(), out)
    except IntegrityError as error:
        assert "out.gguf.merge-journal" in str(error)
    else:
        assert journal is not None
        journal.close()
    assert journal_path(out).read_bytes() == text

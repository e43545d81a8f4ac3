"""Every reader of what is stored or foreign, given a few hundred mutated documents and every old find.

`make fuzz` does the same for minutes. What may come of an input is in `fuzz.oracle`.
"""

import zlib
from pathlib import Path
from typing import Any

import pytest

from fuzz.oracle import Find, judged
from fuzz.run import SEEDS, fuzz, seeds_of, try_document
from fuzz.targets import TARGETS

CASES = {
    **{"gguf": 60, "manifest": 60, "run": 80, "merge-journal": 25, "imatrix-journal": 120},
    **{"endpoint": 25, "template": 25, "route-trace": 100},
}
MORE = 250
BEING_FIXED: set[str] = set()
READERS = [
    pytest.param(name, marks=pytest.mark.xfail(reason="being fixed")) if name in BEING_FIXED else name
    for name in TARGETS
]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", READERS)
def test_no_document_ends_in_anything_but_a_sentence(name: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()

    done, finds = fuzz(TARGETS[name], work, seed=1, cases=CASES.get(name, MORE), seconds=20)

    assert done > 5
    assert finds == {}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", READERS)
def test_what_was_found_once_stays_fixed(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    target.base(tmp_path)

    found = {seed: str(find) for seed, data in seeds_of(name) if (find := try_document(target, data, tmp_path))}

    assert found == {}


def test_every_folder_of_seeds_belongs_to_a_target() -> None:
    assert {path.name for path in SEEDS.iterdir()} <= set(TARGETS)


@pytest.mark.parametrize(
    "harm",
    [
        lambda scratch: [][1],
        lambda scratch: zlib.decompress(b"x"),
        lambda scratch: (scratch.parent / "outside").write_text("x"),
        lambda scratch: (scratch.parent / "kept").unlink(),
    ],
)
def test_the_oracle_sees_each_harm(harm: Any, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    scratch = tmp_path / "case"
    scratch.mkdir()

    with pytest.raises(Find), judged(scratch):
        harm(scratch)

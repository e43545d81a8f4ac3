"""The shipped calibration mix: what it covers, and that it holds nothing that anything is measured on."""

import hashlib
import re
from pathlib import Path

import pytest

from dfqs.errors import UsageError
from dfqs.evaluate import prompts
from dfqs.quantize import calibration
from dfqs.quantize.calibration import Corpus, Stream, heldout_text, read_corpus, shipped_corpus, worked_problems
from dfqs.records import sha256_of


def test_the_shipped_mix_has_chat_code_maths_and_many_scripts() -> None:
    corpus = shipped_corpus()
    kinds = {stream.kind: stream for stream in corpus.streams}
    languages = "\n".join(kinds["languages"].documents)

    assert set(kinds) == {"chat", "prose", "languages", "code", "maths"}
    assert len(kinds["chat"].conversations) >= 15
    assert all(turns[0][0] == "user" and turns[-1][0] == "assistant" for turns in kinds["chat"].conversations)
    assert not [letter for letter in "жα清の아بאसßç" if letter not in languages]


def test_the_mix_is_frozen_because_importance_measured_on_another_does_not_compare() -> None:
    """Another mix is another number in `calibration.NAME`. Modules of the package were once read as they stood."""
    corpus = shipped_corpus()

    assert corpus.name == "dfqs-calibration-1"
    assert corpus.sha256 == "a94f7869f119f89b3f9b8401d2a755baaeed4428f4f2564d25edb59b6f9b76e9"
    heldout = "a8d22ca94f0bdf326fb14d69b8f5b9482a8635a82c22401391727d4dff95d53a"
    assert hashlib.sha256(heldout_text().encode()).hexdigest() == heldout


def test_a_text_without_end_is_refused_and_not_read_until_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MAX_TEXT_BYTES", 1000)
    (tmp_path / "long.txt").write_bytes(bytes(1001))
    with pytest.raises(UsageError, match=r"long\.txt is larger than a corpus may be \(1\.0 kB\)"):
        read_corpus([tmp_path / "long.txt"])


def test_worked_problems_are_right_because_wrong_arithmetic_would_calibrate_nonsense() -> None:
    for problem in worked_problems(200):
        for left, right in _equalities(problem):
            assert eval(left) == int(right), problem


def _equalities(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(?<![\w^.])(\d+(?: [*+-] \d+)+) = (\d+)(?![\d.]*[.]\d)(?! [*+-] )", text)


def calibration_lines() -> set[str]:
    documents = [d for stream in shipped_corpus().streams for d in stream.documents]
    spoken = [text for s in shipped_corpus().streams for turns in s.conversations for _, text in turns]
    return {line.strip() for text in [*documents, *spoken] for line in text.splitlines() if len(line.strip()) > 30}


def test_no_held_out_sentence_is_in_the_calibration_mix() -> None:
    held_out = heldout_text()

    assert not [line for line in calibration_lines() if line in held_out]


def test_no_line_of_an_evaluation_prompt_is_in_the_calibration_mix() -> None:
    directory = Path(prompts.__file__).parent
    questions = "\n".join(path.read_text() for path in sorted(directory.glob("*.json*")))

    assert len(questions) > 10_000
    assert not [line for line in calibration_lines() if line in questions]


def test_a_corpus_is_hashed_piece_by_piece_as_its_canonical_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_PIECE_CHARACTERS", 3)
    said = (("user", "Hé"), ("assistant", ""))
    streams = (Stream("a", ('one "two"\n\0', "", "\U0001f600é\\")), Stream("b", (), (said,)))

    for chosen in ((), streams[:1], streams):
        whole = [[s.kind, list(s.documents), [list(messages) for messages in s.conversations]] for s in chosen]
        assert Corpus("x", chosen).sha256 == sha256_of(whole)

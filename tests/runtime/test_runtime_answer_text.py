"""Text out of tokens: no half characters, nothing of a stop string, nothing lost."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dfqs.runtime.answer_text import AnswerText


def say(pieces: list[bytes], stop: list[str]) -> tuple[str, list[str], bool]:
    written: list[str] = []
    text = AnswerText(stop, written.append)
    goes_on = True
    for piece in pieces:
        goes_on = text.add(piece)
        if not goes_on:
            break
    text.finish()
    assert "".join(written) == text.text
    return text.text, written, goes_on


def test_a_stop_string_cut_by_tokens_is_not_shown_even_in_part() -> None:
    assert say([b"one E", b"N", b"D two"], ["END"]) == ("one ", ["one "], False)


def test_a_beginning_of_a_stop_string_that_is_none_is_shown_later() -> None:
    assert say([b"one E", b"N", b"O"], ["END"]) == ("one ENO", ["one ", "ENO"], True)
    assert say([b"E", b"N"], ["END"]) == ("EN", ["EN"], True)


def test_a_character_cut_by_tokens_comes_whole_and_half_a_one_at_the_end_is_marked() -> None:
    assert say([b"\xe2\x82", b"\xac", b"\xe2"], []) == ("€\ufffd", ["€", "\ufffd"], True)


@given(
    text=st.text("abX€", max_size=40),
    stop=st.lists(st.text("abX€", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_however_it_is_cut_the_text_ends_before_the_first_stop_string(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)), max_size=8)) | {0, len(encoded)})
    pieces = [encoded[start:end] for start, end in itertools.pairwise(cuts)]

    shown, _, goes_on = say(pieces, stop)

    places = [text.find(string) for string in stop if string in text]
    # A piece may complete several; what stands before all of them is sure.
    assert text.startswith(shown)
    assert goes_on is (not places)
    assert not any(string in shown for string in stop)
    if not places:
        assert shown == text

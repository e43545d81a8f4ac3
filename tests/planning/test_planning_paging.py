"""What the kernel pages in: stack distances that can be reckoned by hand, and those of a list that is kept in order."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.planning.paging import StackDistances, measure_distances
from dfqs.streaming.policy import Pass


def test_a_distance_is_what_was_used_since_with_its_own_size() -> None:
    sizes = {(0, 0): 4, (0, 1): 2, (0, 2): 2}
    passes: list[Pass] = [[(0, [0])], [(0, [1])], [(0, [0])], [(0, [2])], [(0, [1])], [(0, [0])], [(1, [7])]]

    found = measure_distances(sizes, 0, passes, warm=2)

    assert found is not None
    assert found.distances.tolist() == [4 + 2, inf, 2 + 2 + 4, 4 + 2 + 2]
    assert found.sizes.tolist() == [4, 2, 2, 4]
    # Five passes are counted. In a room of six, 2 pushes out 1, 1 pushes out 0, and 0 comes back.
    assert found.missed_bytes(6) == (2 + 2 + 4) / 5
    assert found.missed_bytes(8) == 2 / 5
    assert measure_distances(sizes, 0, passes, warm=7) is None


def test_what_every_token_uses_is_pushed_out_too_where_a_token_uses_more_than_there_is_room_for() -> None:
    # At 25 % of a file the kernel read half as much again as all experts of a token: their layers had gone as well.
    passes: list[Pass] = [[(0, [token % 3]), (1, [token % 3])] for token in range(9)]
    sizes = {(layer, expert): 10 for layer in range(2) for expert in range(3)}

    found = measure_distances(sizes, 100, passes, warm=3)

    assert found is not None
    # A layer's 50 come round again behind 10 of its own and 50 + 10 of the other; experts behind three tokens.
    assert found.missed_bytes(119) == 120
    assert found.missed_bytes(120) == 20
    assert found.missed_bytes(160) == 0


def test_read_ahead_is_read_besides_and_takes_some_room() -> None:
    found = StackDistances(np.array([100.0, 50.0]), np.array([10.0, 1.0]), 2)

    # All of 1.00, 1.03, 1.06 and 1.09 leave more than 100 of 120; two of them of 105; with read-ahead one.
    assert found.paged_bytes(120, 1.0) == 0
    assert found.paged_bytes(105, 1.0) == pytest.approx(10 / 2 * 2 / 4)
    assert found.paged_bytes(105, 1.12) == pytest.approx(1.12 * 10 / 2 * 3 / 4)
    assert found.paged_bytes(40, 2.0) == pytest.approx(2 * 11 / 2)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True), min_size=2, max_size=30), st.data())
def test_a_room_keeps_what_a_list_in_the_order_of_use_keeps(chosen: list[list[int]], data: st.DataObject) -> None:
    sizes = {(0, expert): data.draw(st.integers(1, 9)) for expert in range(6)}
    room = data.draw(st.integers(1, 40))
    passes: list[Pass] = [[(0, experts)] for experts in chosen]

    found = measure_distances(sizes, 0, passes, warm=0)

    held: list[tuple[int, int]] = []
    missed = 0
    for experts in chosen:
        for key in ((0, expert) for expert in experts):
            if key in held:
                held.remove(key)
            else:
                missed += sizes[key]
            held.append(key)
            while sum(sizes[one] for one in held) > room:
                held.pop(0)
    assert found is not None
    assert found.missed_bytes(room) == pytest.approx(missed / len(chosen))

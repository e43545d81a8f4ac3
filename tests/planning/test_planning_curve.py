"""Rates against memory: more of it never means fewer tokens, and numbers that can be reckoned by hand are those."""

from dataclasses import replace

import pytest

from dfqs.planning.curve import Choices, CurveModel, draw_choices, draw_curve, plot_points
from dfqs.planning.disk_probe import DiskRate, DiskSpeed
from dfqs.streaming.lookahead import GuessRoom
from dfqs.streaming.policy import simulate_cache

MB = 1_000_000
DISK = DiskSpeed(MB, DiskRate(1e9, 0.9e9, 1.1e9, 1.0), DiskRate(0.4e9, 0.3e9, 0.5e9, 1.2), 131_072)


def model_of(layers: int, experts: int, token_s: float = 0.05) -> CurveModel:
    sizes = {(layer, expert): 3 * MB for layer in range(layers) for expert in range(experts)}
    return CurveModel(sizes, 50 * MB, 20 * MB, 50 * MB + sum(sizes.values()), token_s)


def test_a_token_that_chooses_what_no_cache_holds_costs_its_bytes_and_their_time() -> None:
    model = model_of(1, 8)
    # Each expert in turn: a cache of half of them has none of them when it comes round again.
    passes = tuple([(0, [token % 8])] for token in range(240))

    point = draw_curve(model, Choices(passes, "in turn", 8, (0,), 1), DISK, [70 * MB + 3 * 4 * MB])[0]

    assert point.paged_bytes_per_token == pytest.approx(3 * MB * 1.2)
    assert point.paged is not None
    assert point.paged.tokens_per_s == pytest.approx(1 / (0.05 + 1.4 * 3 * MB / 0.4e9))
    assert point.streamed_bytes_per_token is not None
    assert 0 < point.streamed_bytes_per_token <= 3 * MB
    assert point.streamed is not None
    assert point.streamed.low < point.streamed.tokens_per_s < point.streamed.high


def test_choices_that_stay_the_same_cost_nothing_after_the_first() -> None:
    passes = tuple([(0, [1, 2])] for _ in range(60))

    point = draw_curve(model_of(1, 8), Choices(passes, "the same", 8, (0,), 2), DISK, [70 * MB + 3 * 5 * MB])[0]

    assert (point.streamed_bytes_per_token, point.paged_bytes_per_token) == (0.0, 0.0)
    assert point.hit_share == 1.0


@pytest.mark.thorough
def test_more_memory_is_never_slower() -> None:
    model = model_of(6, 32)
    choices = draw_choices(range(6), 32, 4)
    memory = [*plot_points(model), model.file_bytes + 20 * MB]

    points = draw_curve(model, choices, DISK, memory)

    for name in ("streamed", "paged"):
        rates = [rate.tokens_per_s for point in points if (rate := getattr(point, name)) is not None]
        assert rates == sorted(rates)
    assert points[-1].streamed_bytes_per_token == points[-1].paged_bytes_per_token == 0
    assert points[-1].paged is not None
    assert points[-1].paged.tokens_per_s == pytest.approx(20)


def test_memory_that_has_no_room_for_an_expert_is_paged_only_and_what_every_token_uses_with_it() -> None:
    model, choices = model_of(2, 8), draw_choices(range(2), 8, 2)

    (point,) = draw_curve(model, choices, DISK, [60 * MB])
    (none,) = draw_curve(model, choices, DISK, [20 * MB])

    assert (point.streamed, point.cache_bytes, point.hit_share) == (None, None, None)
    # 40 MB for 50 that every token uses: when a layer comes round again nothing of it is left.
    assert point.paged_bytes_per_token == pytest.approx(1.2 * (50 * MB + 4 * 3 * MB))
    assert (none.paged_bytes_per_token, none.paged) == (None, None)


def test_a_model_that_is_not_here_has_bytes_streamed_and_no_rates() -> None:
    point = draw_curve(model_of(4, 32), draw_choices(range(4), 32, 4), None, [200 * MB, 600 * MB])

    assert point[0].streamed_bytes_per_token and point[0].hit_share
    assert (point[0].streamed, point[0].paged, point[0].paged_bytes_per_token) == (None, None, None)
    assert point[1].streamed is not None
    assert point[1].paged is not None


def test_what_is_read_ahead_is_not_waited_for_and_wrong_guesses_are_read_besides() -> None:
    choices = draw_choices(range(4), 32, 4)
    plain, room = model_of(4, 32), GuessRoom(2, MB)
    guessing = replace(plain, guess_room=lambda _: room)
    memory = 200 * MB

    (with_room,) = draw_curve(plain, choices, DISK, [memory - room.bytes])
    (ahead,) = draw_curve(guessing, choices, DISK, [memory])
    (unknown,) = draw_curve(guessing, choices, None, [memory])

    # The cache is smaller by the room for guesses. Two matrices of 1 MB where a layer misses any, some in vain.
    use = simulate_cache(plain.sizes, memory - 70 * MB - room.bytes, choices.passes, warm_passes=choices.warm)
    begun = 2 * MB * sum(use.layer_reads.values()) / use.passes
    wanted = with_room.streamed_bytes_per_token
    assert 4 * MB < begun < 8 * MB
    assert wanted is not None and wanted > 8 * MB
    assert unknown.streamed_bytes_per_token == wanted
    right = 0.86 - 0.22 * (use.hit_rate or 0)
    assert 0.64 < right < 0.84
    assert ahead.streamed_bytes_per_token == pytest.approx(wanted + (1 - right) * begun)
    assert ahead.streamed is not None and with_room.streamed is not None
    waited = 0.9 * (wanted - right * begun) / 1e9
    assert ahead.streamed.tokens_per_s == pytest.approx(1 / (0.05 * 1.15 + waited))
    assert ahead.streamed.low < with_room.streamed.low < ahead.streamed.high


def test_no_more_is_read_ahead_than_the_disk_gives_while_a_layer_computes() -> None:
    # A room for guesses that is never filled had been taken for full: bytes forecast 6 % too high.
    choices = draw_choices(range(4), 32, 4)
    model = replace(model_of(4, 32, token_s=0.004), guess_room=lambda _: GuessRoom(6, MB))

    (point,) = draw_curve(model, choices, DISK, [200 * MB])

    use = simulate_cache(model.sizes, 124 * MB, choices.passes, warm_passes=choices.warm)
    # A millisecond a layer gives 1 MB, of which 65 % are used: less than any expert.
    begun = 0.65 * MB * sum(use.layer_reads.values()) / use.passes
    wrong = 1 - 0.86 + 0.22 * (use.hit_rate or 0)
    assert point.streamed_bytes_per_token == pytest.approx((use.bytes_per_pass or 0) + wrong * begun)


def test_a_slower_disk_makes_fewer_tokens_and_no_other_bytes() -> None:
    model, choices = model_of(4, 32), draw_choices(range(4), 32, 4)
    slow = replace(DISK, direct=DiskRate(2e8, 1e8, 3e8, 1.0))

    fast_point, slow_point = (draw_curve(model, choices, disk, [200 * MB])[0] for disk in (DISK, slow))

    assert fast_point.streamed_bytes_per_token == slow_point.streamed_bytes_per_token
    assert fast_point.streamed is not None
    assert slow_point.streamed is not None
    assert slow_point.streamed.tokens_per_s < fast_point.streamed.tokens_per_s


def test_made_up_choices_say_so_and_prefer_some_experts() -> None:
    skewed, uniform = draw_choices(range(4), 64, 4), draw_choices(range(4), 64, 4, skew=0.0)

    def hottest(choices: Choices) -> float:
        counts = [0] * 64
        for token in choices.passes:
            for expert in token[0][1]:
                counts[expert] += 1
        return sum(sorted(counts)[-16:]) / sum(counts)

    assert skewed.source.startswith("synthetic")
    assert uniform.source.startswith("uniform")
    assert 0.4 < hottest(skewed) < 0.7
    assert hottest(uniform) < 0.4
    assert draw_choices(range(4), 64, 4).passes == skewed.passes

"""Tokens and time of likelihoods on shared beginnings, against each choice computed with its whole context.

    python benchmarks/likelihood.py MODEL.gguf [--items 8] [--rounds 3]

Arms are interleaved: `shared` and `alone` in turn, `shared` twice a round as its own control. Both arms run in one
worker, with the same context and the same pieces.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from dfqs.evaluate.likelihood import Continuation, LikelihoodSession
from harness_inputs import items


def timed(session: LikelihoodSession, batches: list[list[Continuation]]) -> tuple[float, int, list[float]]:
    """Seconds, tokens computed, and the likelihoods."""
    before, started = session.work.computed_tokens, time.perf_counter()
    scores = [score.logprob for batch in batches for score in session.score_tokens(batch)]
    return time.perf_counter() - started, session.work.computed_tokens - before, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pairs = [(item["question"], choice) for item in items(options.items) for choice in item["choices"]]
    with LikelihoodSession(options.model, context_tokens=512, chunk_tokens=64) as session:
        asked = session.encode(pairs)
        # Something of nothing in common between two choices makes the cache forget.
        flush = [Continuation((1,), (2,))]
        alone = [batch for each in asked for batch in (flush, [each])]
        timed(session, [asked])
        seconds: dict[str, list[float]] = {"shared": [], "shared again": [], "alone": []}
        tokens: dict[str, int] = {}
        results: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for arm in seconds:
                timed(session, [flush])
                spent, tokens[arm], results[arm] = timed(session, alone if arm == "alone" else [asked])
                seconds[arm].append(spent)
    same = results["alone"][1::2] == results["shared"]
    for arm, times in seconds.items():
        rounded = [round(each, 2) for each in times]
        print(f"{arm:13} {tokens[arm]:>7,} tokens  median {statistics.median(times):7.2f} s  {rounded}")
    ratio = statistics.median(seconds["alone"]) / statistics.median(seconds["shared"])
    control = statistics.median(seconds["shared again"]) / statistics.median(seconds["shared"])
    print(
        f"{len(asked)} choices: tokens {tokens['alone'] / tokens['shared']:.2f} x, time {ratio:.2f} x, "
        f"control {control:.2f} x; equal likelihoods: {same}"
    )


if __name__ == "__main__":
    main()

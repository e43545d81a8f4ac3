"""How probable a text is after another, inside a worker process: branches of contexts that are computed once.

What is computed for a continuation depends on its tokens and its context's alone, never on what was scored before it:

- A context is computed in pieces of `chunk_tokens` from its beginning. Contexts share whole pieces only, so that a
  piece is the same computation whoever computes it first.
- Its last token, with the continuation, is a branch (`llama_memory_seq_cp`), one at a time: beside another branch in
  the cache the sums of attention come out otherwise (by up to 2.4 in a logit of the demonstration model).
- No piece is narrower than `MINIMUM_WIDTH`: the end of a context that would be is computed with each branch, and a
  short branch is filled up behind its end, which nothing before it can see. One token alone goes another way through
  the matrix products, with other last bits; two and more go the same way as 512.
- Continuations whose tokens are the same up to the last one are one branch. All answers of one token are.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise

from dfqs.errors import UsageError
from dfqs.runtime.context import Context, Logits
from dfqs.runtime.logprobs import TokenScore, score_rows
from dfqs.runtime.model import Model
from dfqs.runtime.requests import ContextSettings

MINIMUM_WIDTH = 8
CHUNK_TOKENS = 128
MARKS = 6
"""Beginnings that are kept at once, for the contexts that go on otherwise behind them."""
_CONTEXT, _BRANCH, _FIRST_MARK = 0, 1, 2


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """The numerics that scores are computed in."""

    context_tokens: int
    """Longest context and continuation together, without the last token, which is predicted and not read."""
    chunk_tokens: int = CHUNK_TOKENS
    flash_attention: str = "off"
    type_k: str = "f16"
    type_v: str = "f16"

    @property
    def context(self) -> ContextSettings:
        """That it is computed in."""
        return ContextSettings(
            self.context_tokens + MINIMUM_WIDTH,
            n_batch=self.chunk_tokens,
            n_ubatch=self.chunk_tokens,
            flash_attention=self.flash_attention,
            type_k=self.type_k,
            type_v=self.type_v,
            # A cache of the last tokens only places them by what was there before, and sums in that order.
            swa_full=True,
            n_seq_max=_FIRST_MARK + MARKS,
            kv_unified=True,
        )


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens to score after others."""

    context: tuple[int, ...]
    """At least one: the first token has to be predicted from something."""
    continuation: tuple[int, ...]
    """At least one."""


@dataclass(frozen=True, slots=True)
class ContinuationScore:
    """How probable a continuation was."""

    tokens: tuple[TokenScore, ...]

    @property
    def logprob(self) -> float:
        """Sum over its tokens."""
        return sum(token.logprob for token in self.tokens)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would write it."""
        return all(token.is_greedy for token in self.tokens)


@dataclass(frozen=True, slots=True)
class ScoringWork:
    """What scores took, and what they would have taken."""

    continuations: int = 0
    computed_tokens: int = 0
    """That went through the model, those included that fill up short branches."""
    alone_tokens: int = 0
    """That would have, had each continuation been computed with its whole context."""

    def __add__(self, other: "ScoringWork") -> "ScoringWork":
        return ScoringWork(*(mine + theirs for mine, theirs in zip(_numbers(self), _numbers(other), strict=True)))


class Scorer:
    """Scores continuations with one model; it has a context of its own.

    Raises:
        RuntimeFailure: llama.cpp cannot make the context.
        UsageError: settings that make no sense.
    """

    def __init__(self, model: Model, settings: ScoringSettings, threads: int | None = None) -> None:
        if settings.chunk_tokens < 2 * MINIMUM_WIDTH:
            raise UsageError(f"pieces of {settings.chunk_tokens} tokens are too short; at least {2 * MINIMUM_WIDTH}")
        self.settings = settings
        self._context = Context(model, threads=threads, **asdict(settings.context))
        self.limit_tokens = min(settings.context_tokens, self._context.n_ctx_sequence - MINIMUM_WIDTH)
        """Longest context and continuation together, without the last token."""
        self._vocabulary = model.vocab_size
        self._path: tuple[int, ...] = ()
        self._marks: list[int] = []
        """Tokens of the beginnings that are kept, shortest first; the k-th lies in sequence `_FIRST_MARK + k`."""

    def score(
        self, asked: Sequence[Continuation], on_score: Callable[[int, ContinuationScore], object], top: int = 0
    ) -> ScoringWork:
        """Score all that is asked, in the order in which most is shared.

        Args:
            on_score: called with the index in `asked` and the score, as they come.
            top: how many of the most probable tokens to tell at each position.

        Raises:
            UsageError: something is longer than the context, empty, or has tokens that do not exist.
            NonFiniteLogits: the model computes no numbers.
            Stopped: a stop was requested.
        """
        for each in asked:
            self._check(each)
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, each in enumerate(asked):
            groups.setdefault(each.context, []).append(index)
        contexts = sorted(groups)
        starts = [branch_start(len(context), self.settings.chunk_tokens) for context in contexts]
        shared = _shared(contexts, starts)
        computed = 0
        try:
            for place, (context, start) in enumerate(zip(contexts, starts, strict=True)):
                computed += self._read(context, start, shared[place:])
                indices = groups[context]
                continuations = [asked[index].continuation for index in indices]

                def found(which: int, score: ContinuationScore, indices: list[int] = indices) -> None:
                    on_score(indices[which], score)

                computed += score_branches(
                    self._context, _CONTEXT, _BRANCH, start, context[start:], continuations, found, top
                )
        except BaseException:
            self._forget()
            raise
        alone = sum(len(each.context) + len(each.continuation) - 1 for each in asked)
        return ScoringWork(len(asked), computed, alone)

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        max_tokens: Sequence[int],
        take: Callable[[int, TokenScore], bool],
        on_end: Callable[[int, str], object],
        top: int = 0,
    ) -> None:
        """Continue each prompt greedily; prompts that begin alike share that.

        Args:
            take: called with the index in `prompts` and each token, the one that ends the text included; False ends it.
            on_end: called with the index and why it ended: `stop` (the model, or `take`), `length` (so many tokens),
                `context` (no room left).
            top: how many of the most probable tokens to tell at each place.

        Raises:
            UsageError: a prompt is empty, or leaves no room for a token.
        """
        for prompt in prompts:
            if not 0 < len(prompt) <= self.limit_tokens:
                raise UsageError(
                    f"a prompt of {len(prompt):,} tokens; from 1 to {self.limit_tokens:,} can be continued"
                )
        order = sorted(range(len(prompts)), key=lambda index: prompts[index])
        ordered = [prompts[index] for index in order]
        # What is computed last is wide too, and nothing is filled up behind it: text follows.
        starts = [
            branch_start(max(len(prompt) - MINIMUM_WIDTH + 1, 1), self.settings.chunk_tokens) for prompt in ordered
        ]
        shared = _shared(ordered, starts)
        try:
            for place, (index, start) in enumerate(zip(order, starts, strict=True)):
                self._read(prompts[index], start, shared[place:])
                on_end(index, self._write(prompts[index], start, max_tokens[index], partial(take, index), top))
        except BaseException:
            self._forget()
            raise

    def _write(
        self, prompt: tuple[int, ...], start: int, max_tokens: int, take: Callable[[TokenScore], bool], top: int
    ) -> str:
        self._context.remove_sequence(_BRANCH)
        self._context.copy_sequence(_CONTEXT, _BRANCH)
        tokens: Sequence[int] = prompt[start:]
        position, reason = start, "length"
        for count in range(max_tokens):
            if count and position == self.limit_tokens:
                reason = "context"
                break
            logits = self._context.decode(tokens, position, _BRANCH)
            assert logits is not None
            position += len(tokens)
            tokens = [int(logits.argmax())]
            (score,) = score_rows(logits[None], tokens, top)
            if not take(score) or self._context.model.is_end(tokens[0]):
                reason = "stop"
                break
        self._context.remove_sequence(_BRANCH)
        return reason

    def close(self) -> None:
        self._context.close()

    def _check(self, asked: Continuation) -> None:
        if not asked.context or not asked.continuation:
            raise UsageError("a context and a continuation of at least one token each are needed to score")
        length = len(asked.context) + len(asked.continuation) - 1
        if length > self.limit_tokens:
            raise UsageError(f"the context is too short: {length:,} tokens to score, {self.limit_tokens:,} fit")
        # The last one is not read, so the context does not see it.
        if not 0 <= min(asked.continuation) <= max(asked.continuation) < self._vocabulary:
            raise UsageError(f"a token is outside the vocabulary of {self._vocabulary:,}")

    def _read(self, tokens: tuple[int, ...], start: int, shared: Sequence[int]) -> int:
        """Bring the context's sequence to `tokens[:start]`; returns how many tokens that computed.

        Args:
            shared: what this context has in common with the next, that with the one after it, and so on.
        """
        if self._path == tokens[:start]:
            return 0
        common = common_length(self._path, tokens[:start])
        while self._marks and self._marks[-1] > common:
            self._context.remove_sequence(_FIRST_MARK + len(self._marks) - 1)
            self._marks.pop()
        self._context.remove_sequence(_CONTEXT)
        begin = done = self._marks[-1] if self._marks else 0
        if done:
            self._context.copy_sequence(_FIRST_MARK + len(self._marks) - 1, _CONTEXT)
        self._path = tokens[:start]
        for mark in self._new_marks(done, shared):
            done = self._decode(tokens, done, mark)
            self._context.copy_sequence(_CONTEXT, _FIRST_MARK + len(self._marks))
            self._marks.append(mark)
        self._decode(tokens, done, start)
        return start - begin

    def _decode(self, tokens: Sequence[int], done: int, end: int) -> int:
        if done < end:
            self._context.decode(tokens[done:end], done, _CONTEXT, logits="none")
        return end

    def _new_marks(self, done: int, shared: Sequence[int]) -> list[int]:
        """Where contexts that follow leave the path of this one, in whole pieces, and its own last whole piece, which
        the next call may go on from; as many as can be kept."""
        found: list[int] = []
        common = len(self._path)
        for each in (common, *shared):
            common = min(common, each // self.settings.chunk_tokens * self.settings.chunk_tokens)
            if common <= done:
                break
            if not found or common < found[-1]:
                found.append(common)
        return sorted(found[: MARKS - len(self._marks)])

    def _forget(self) -> None:
        self._context.clear()
        self._path, self._marks = (), []


def branch_start(context_tokens: int, chunk_tokens: int) -> int:
    """How many tokens of a context are computed before its branches: all but the last, and but a narrow last piece."""
    rest = (context_tokens - 1) % chunk_tokens
    return context_tokens - 1 - (rest if rest < MINIMUM_WIDTH else 0)


def score_branches(
    context: Context,
    trunk: int,
    branch: int,
    position: int,
    head: Sequence[int],
    continuations: Sequence[Sequence[int]],
    on_score: Callable[[int, ContinuationScore], object],
    top: int = 0,
) -> int:
    """Score continuations of what a sequence holds, each on a branch that is forgotten afterwards.

    Args:
        trunk: the sequence; it holds the positions before `position`, and is left as it is.
        branch: a sequence that is free, and will be again.
        head: tokens between the sequence's end and the continuations, computed with each branch; at least one, for the
            last one here predicts the first token of a continuation.
        on_score: called with the index in `continuations` and its score.
        top: how many of the most probable tokens to tell at each position.

    Returns:
        How many tokens were computed.

    Raises:
        UsageError: no room in the context, or a token that does not exist.
        NonFiniteLogits: the model computes no numbers.
        Stopped: a stop was requested.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, continuation in enumerate(continuations):
        alike.setdefault(tuple(continuation[:-1]), []).append(index)
    computed = 0
    for read, indices in sorted(alike.items()):
        tokens = [*head, *read]
        narrow = len(tokens) % context.n_batch
        if 0 < narrow < MINIMUM_WIDTH:
            tokens += tokens[-1:] * (MINIMUM_WIDTH - narrow)
        found: list[list[TokenScore]] = [[] for _ in indices]
        targets = [continuations[index] for index in indices]
        context.remove_sequence(branch)
        context.copy_sequence(trunk, branch)
        take = partial(_score_batch, len(head) - 1, targets, found, top)
        context.decode(tokens, position, branch, logits="all", take=take)
        context.remove_sequence(branch)
        computed += len(tokens)
        for index, scores in zip(indices, found, strict=True):
            on_score(index, ContinuationScore(tuple(scores)))
    return computed


def _score_batch(
    before: int, targets: Sequence[Sequence[int]], found: list[list[TokenScore]], top: int, start: int, rows: Logits
) -> None:
    """Score what a batch predicts of the targets; its rows are those of the branch's tokens from `start` on.

    Args:
        before: rows of the branch that come before the one that predicts the first target.
    """
    length = len(targets[0])
    first, end = max(start, before), min(start + len(rows), before + length)
    if first >= end:
        return
    wanted = rows[first - start : end - start]
    for tokens, scores in zip(targets, found, strict=True):
        scores.extend(score_rows(wanted, tokens[first - before : end - before], top))


def _shared(contexts: Sequence[tuple[int, ...]], starts: Sequence[int]) -> list[int]:
    """What each of the contexts, less their ends, has in common with the next."""
    beginnings = [context[:start] for context, start in zip(contexts, starts, strict=True)]
    return [common_length(first, second) for first, second in pairwise(beginnings)]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


def _numbers(work: ScoringWork) -> tuple[int, int, int]:
    return work.continuations, work.computed_tokens, work.alone_tokens

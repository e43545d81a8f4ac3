"""What weights are multiplied with, added up while a graph is computed: squares and sums of inputs, by column.

The evaluation callback looks at every multiplication with a weight; a `MUL_MAT_ID` says besides which expert each row
went to. Runs in a worker process. Sums as `tools/imatrix/imatrix.cpp` (`collect_imatrix`) defines them.

Nothing that comes out of the last multiplication, the one with the output matrix, is looked at, and it is as large as
all experts of a small model together. So the graph is ended where its input is there.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dfqs.errors import RuntimeFailure
from dfqs.quantize.imatrix_file import Accumulated, Counts, Imatrix
from dfqs.quantize.imatrix_sums import Float32
from dfqs.runtime.observe import END_GRAPH, EvalCallback, TensorView

MIN_ROWS = 16
"""Inputs of fewer rows are no sample of text (llama-imatrix's own limit)."""
WEIGHT = re.compile(r"(blk\.\d+\..+|output|token_embd)\.weight")
_PRODUCT, _PRODUCT_BY_EXPERT = "MUL_MAT", "MUL_MAT_ID"

Sums = tuple[Float32, Float32, Counts]


@dataclass(frozen=True, slots=True)
class _LastProduct:
    """The last multiplication of a graph, and the node that is its input."""

    weight: str
    groups: int
    input_name: str
    input_op: str
    before: int
    """Multiplications with weights that come before it."""


class Collector:
    """Adds up inputs of weights as the evaluation callback meets them. Pass `callback` to the context."""

    def __init__(self) -> None:
        self.callback = EvalCallback(self._wants, self._take)
        self._matrix = Imatrix({})
        self._read: tuple[int, Sums] | None = None
        """The input that was summed last, by its address."""
        self._products = 0
        """Multiplications with weights that this graph has shown."""
        self._last: _LastProduct | None = None
        self._final: _LastProduct | None = None
        """Where graphs end; None: at their end."""

    def begin(self, matrix: Imatrix) -> None:
        """A new graph, to be added to `matrix`: what was read of the last one is void."""
        self._matrix, self._read, self._products = matrix, None, 0

    def end_graphs(self) -> None:
        """From now on compute no graph further than to the input of the multiplication that the last graph showed last.
        What `llama_decode` then gives as logits was not computed."""
        self._final = self._last
        self.callback.forget()

    def _wants(self, name: str, op: str) -> bool:
        if op in (_PRODUCT, _PRODUCT_BY_EXPERT):
            return True
        return self._final is not None and (name, op) == (self._final.input_name, self._final.input_op)

    def _take(self, name: str, op: str, tensor: TensorView) -> bool | None:
        """Add one multiplication's inputs.

        Raises:
            RuntimeFailure: inputs that are no numbers.
        """
        if op not in (_PRODUCT, _PRODUCT_BY_EXPERT):
            return self._end_with(tensor)
        weight, inputs = tensor.source(0), tensor.source(1)
        if weight is None or inputs is None or inputs.type != 0:
            return None
        weight_name = weight.name.partition("#")[2].partition("#")[0] or weight.name
        if not WEIGHT.fullmatch(weight_name):
            return None
        self._products += 1
        if op == _PRODUCT_BY_EXPERT:
            ids = tensor.source(2)
            if ids is not None:
                self._add(weight_name, self._once(inputs, lambda: sum_by_expert(inputs, ids, weight.shape[2])))
            self._last = None
        else:
            groups = weight.shape[2] * weight.shape[3]
            if inputs.shape[1] >= MIN_ROWS:
                self._add(weight_name, self._once(inputs, lambda: sum_by_group(inputs, groups)))
            self._last = _LastProduct(weight_name, groups, inputs.name, inputs.op, self._products - 1)
        return None

    def _end_with(self, inputs: TensorView) -> bool | None:
        """Add the input of the last multiplication, if this is it, and leave the rest."""
        final = self._final
        # Names of nodes that have none are numbers, and may be another node's in a graph of another size.
        if final is None or self._products != final.before or inputs.type != 0:
            return None
        if inputs.shape[1] >= MIN_ROWS:
            self._add(final.weight, sum_by_group(inputs, final.groups))
        return END_GRAPH

    def _once(self, inputs: TensorView, measure: Callable[[], Sums]) -> Sums:
        # gate and up, or q, k and v, multiply the same input: it is read and summed once.
        if self._read is None or self._read[0] != inputs.address:
            self._read = (inputs.address, measure())
        return self._read[1]

    def _add(self, name: str, found: Sums) -> None:
        squares, sums, counts = found
        if not np.isfinite(squares).all():
            raise RuntimeFailure(f"the inputs of '{name}' are no numbers (NaN or infinite); the model is damaged")
        entry = self._matrix.entries.get(name)
        if entry is None:
            self._matrix.entries[name] = Accumulated(squares.copy(), counts.copy(), sums.copy())
            return
        entry.add(Accumulated(squares, counts, sums), name)


def sum_by_expert(inputs: TensorView, ids: TensorView, experts: int) -> Sums:
    """(squares, sums, counts) of a `MUL_MAT_ID`, by expert.

    Inputs are [tokens, 1 or experts used, columns]: the first matrices of an expert get the token's vector, the last
    one a vector of its own for each expert.
    """
    columns, per_token, tokens, _ = inputs.shape
    values = inputs.peek().reshape(tokens, per_token, columns)
    chosen = ids.peek().reshape(tokens, -1)
    squares = np.zeros((experts, columns), np.float32)
    sums = np.zeros((experts, columns), np.float32)
    counts = np.zeros(experts, np.int64)
    for expert in np.unique(chosen):
        if not 0 <= expert < experts:
            raise RuntimeFailure(f"a token was routed to expert {expert} of {experts}")
        token, slot = np.nonzero(chosen == expert)
        rows = values[token, slot % per_token]
        squares[expert] = np.einsum("ij,ij->j", rows, rows)
        sums[expert] = rows.sum(axis=0)
        counts[expert] = len(rows)
    return squares, sums, counts


def sum_by_group(inputs: TensorView, groups: int) -> Sums:
    """(squares, sums, counts) of a `MUL_MAT`, in one row; a matrix multiplied in parts has them end to end."""
    columns, rows, batches, outer = inputs.shape
    values = inputs.peek().reshape(outer * batches, rows, columns)
    squares = np.zeros((groups, columns), np.float32)
    sums = np.zeros((groups, columns), np.float32)
    for index, part in enumerate(values):
        squares[index % groups] += np.einsum("ij,ij->j", part, part)
        sums[index % groups] += part.sum(axis=0)
    return squares.reshape(1, -1), sums.reshape(1, -1), np.array([len(values) * rows // groups], np.int64)

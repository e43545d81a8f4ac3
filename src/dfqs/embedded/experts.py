"""One dense feed-forward layer made into experts: which neurons go together, who chooses, and what is refitted.

1. Neurons that are active together are clustered into experts of equal size (balanced spherical k-means on weighted
   activations; after MoEfication, Zhang et al. 2022, arXiv:2110.01786).
2. The router is a ridge regression from the layer's input to how much each expert would contribute.
3. The down projection is refitted, so that the sum over the chosen experts comes close to the dense layer.

Everything is deterministic for a given machine; ties go to the lower index.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
Labels = NDArray[np.int64]

PROJECTION = 256
"""Cosines between activation patterns are kept well enough by so many random directions."""
CLUSTER_ROUNDS = 12
ROUTER_RIDGE = 0.1
REFIT_RIDGE = 1.0
"""Strength towards the original down projection, relative to the mean energy of a neuron; 0.03 overfits."""


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """A feed-forward layer as experts."""

    labels: Labels
    """[ffn]: the expert of each neuron."""
    router: Float32
    """[experts, width]; only the order of its scores has a meaning."""
    down: Float32
    """[width, ffn], refitted."""
    score_deviation: float
    """Standard deviation of the router's scores on the calibration text."""
    chosen_share: tuple[float, ...]
    """How often each expert was chosen, of all choices."""
    relative_error: float
    """Weighted squared error of the routed layer against the dense one."""


def fit_layer(
    x: Float32, hidden: Float32, dense_output: Float32, down: Float32, experts: int, used: int, seed: int
) -> tuple[ExpertLayer, Float32]:
    """Fit one layer.

    Args:
        x: the layer's input, [tokens, width].
        hidden: its activations, [tokens, ffn].
        dense_output: what it adds to the residual stream, [tokens, width].
        down: [width, ffn].

    Returns:
        The layer, and what it adds in place of `dense_output`.
    """
    norms = np.linalg.norm(dense_output, axis=1)
    # Tokens with a large output would decide everything; damped, every token has a say.
    weight = (1 / np.sqrt(norms**2 + np.median(norms) ** 2)).astype(np.float32)
    labels = cluster_neurons(hidden, down, weight, experts, seed)
    contribution = expert_norms(hidden, down, labels, experts) * weight[:, None]
    router = fit_router(x, contribution - contribution.mean(axis=1, keepdims=True))
    scores = x @ router.T
    mask = top_k_mask(scores, used)
    refitted = refit_down(hidden, down, labels, mask, weight, dense_output)
    output: Float32 = (hidden * mask[:, labels]) @ refitted.T
    energy = float(((dense_output * weight[:, None]) ** 2).sum())
    error = float((((output - dense_output) * weight[:, None]) ** 2).sum()) / energy
    share = tuple(float(s) for s in mask.mean(axis=0) / used)
    return ExpertLayer(labels, router, refitted, float(scores.std()), share, error), output


def cluster_neurons(hidden: Float32, down: Float32, weight: Float32, experts: int, seed: int) -> Labels:
    """The expert of each neuron: neurons that are active on the same tokens go together, all experts are of one size.

    Every second token is enough to tell.
    """
    rng = np.random.default_rng(seed)
    pattern = (np.abs(hidden) * weight[:, None])[::2].T * np.linalg.norm(down, axis=0)[:, None]
    pattern -= pattern.mean(axis=1, keepdims=True)
    pattern = pattern @ rng.standard_normal((pattern.shape[1], PROJECTION)).astype(np.float32)
    return balanced_k_means(pattern, experts, rng)


def balanced_k_means(points: Float32, clusters: int, rng: np.random.Generator) -> Labels:
    """Spherical k-means of the rows of `points` into clusters of equal size."""
    unit = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)
    # Farthest-first start: each further centre is the point least like those chosen.
    chosen = [int(rng.integers(len(unit)))]
    for _ in range(clusters - 1):
        chosen.append(int((unit @ unit[chosen].T).max(axis=1).argmin()))
    centres = unit[chosen]
    labels = np.full(len(unit), -1)
    for _ in range(CLUSTER_ROUNDS):
        previous, labels = labels, balanced_assignment(unit @ centres.T)
        if (labels == previous).all():
            break
        centres = np.stack([unit[labels == cluster].mean(axis=0) for cluster in range(clusters)])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
    return labels


def balanced_assignment(similarity: Float32) -> Labels:
    """Points to clusters of equal size; whoever would lose most by its second choice chooses first.

    Args:
        similarity: [points, clusters]; points must be a multiple of clusters.
    """
    points, clusters = similarity.shape
    room = np.full(clusters, points // clusters)
    labels = np.full(points, -1)
    left = np.arange(points)
    while len(left):
        open_similarity = np.where(room > 0, similarity[left], -np.inf)
        ordered = np.sort(open_similarity, axis=1)
        regret = ordered[:, -1] - (ordered[:, -2] if (room > 0).sum() > 1 else 0)
        best = open_similarity.argmax(axis=1)
        taken = []
        for candidate in np.argsort(-regret, kind="stable"):
            cluster = best[candidate]
            labels[left[candidate]] = cluster
            room[cluster] -= 1
            taken.append(candidate)
            if room[cluster] == 0:
                break  # a cluster is full: second choices change
        left = np.delete(left, taken)
    return labels


def expert_norms(hidden: Float32, down: Float32, labels: Labels, experts: int) -> Float32:
    """Length of each expert's contribution, [tokens, experts]."""
    parts = [np.linalg.norm(hidden[:, labels == e] @ down[:, labels == e].T, axis=1) for e in range(experts)]
    return np.stack(parts, axis=1)


def fit_router(x: Float32, wanted: Float32) -> Float32:
    """Ridge regression without intercept (`llama` has no router bias), [experts, width]."""
    gram = x.T.astype(np.float64) @ x
    gram[np.diag_indices_from(gram)] += ROUTER_RIDGE * np.trace(gram) / len(gram)
    return np.linalg.solve(gram, x.T.astype(np.float64) @ wanted).T.astype(np.float32)


def top_k_mask(scores: Float32, k: int) -> Bool:
    """True at the k largest of each row; ties go to the lower index."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def refit_down(hidden: Float32, down: Float32, labels: Labels, mask: Bool, weight: Float32, wanted: Float32) -> Float32:
    """Change `down` so that the routed sum reproduces `wanted`; ridge regression towards the original."""
    routed = hidden * mask[:, labels]
    missing = (wanted - routed @ down.T) * weight[:, None]
    routed *= weight[:, None]
    gram = (routed.T @ routed).astype(np.float64)
    gram[np.diag_indices_from(gram)] += REFIT_RIDGE * np.trace(gram) / len(gram)
    change = np.linalg.solve(gram, (routed.T @ missing).astype(np.float64)).T
    return down + change.astype(np.float32)

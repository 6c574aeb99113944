"""What a test loop does, in a few lines."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.evaluator import BaseMetric, Evaluator


def evaluate(
    metric: BaseMetric,
    embeddings: np.ndarray,
    meta: dict,
    images: np.ndarray | None = None,
    order: list[int] | None = None,
    batch: int = 7,
) -> dict[str, float]:
    """Runs a metric as a loop does: batches of samples, then one evaluation."""
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = meta
    order = list(range(len(embeddings))) if order is None else order
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        data_batch = {} if images is None else dict(inputs=torch.from_numpy(images[indices]))
        evaluator.process([dict(embedding=torch.as_tensor(embeddings[i]), index=i) for i in indices], data_batch)
    return evaluator.evaluate(len(order))


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

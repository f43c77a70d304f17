"""Weighted k-nearest-neighbour classification on cosine similarity (Wu et al., 2018)."""

import torch
import torch.nn.functional as F

from .features import FeatureSet


def knn_top1(
    bank: FeatureSet,
    queries: FeatureSet,
    classes: int,
    k: int,
    temperature: float,
    device: torch.device | str = "cpu",
) -> float:
    """Share of queries whose k nearest bank rows, weighted by exp(cosine / temperature), agree."""
    values, known = bank.values.to(device), bank.labels.to(device)
    mean = values.mean(0)  # without it a common offset makes all cosines alike
    keys = F.normalize(values - mean, dim=1)
    k, hits = min(k, len(keys)), 0
    for asked, labels in zip(queries.values.split(1024), queries.labels.split(1024)):
        values, labels = asked.to(device), labels.to(device)
        similarity, nearest = (F.normalize(values - mean, dim=1) @ keys.T).topk(k, dim=1)
        votes = torch.zeros(len(values), classes, device=values.device)
        weight = ((similarity - 1) / temperature).exp()  # at most 1, whatever the temperature
        votes.scatter_add_(1, known[nearest], weight)
        hits += int((votes.argmax(1) == labels).sum())
    return hits / max(1, len(queries.labels))

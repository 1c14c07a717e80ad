"""Lloyd's iterations on unit vectors, slow and obvious: one vector and one cell at a time."""

from __future__ import annotations

import torch


def nearest(vector, centroids):
    """The cell whose centroid has the largest dot product with the vector, of equals the first."""
    products = [float(vector @ centroid) for centroid in centroids]
    return products.index(max(products)), max(products)


def iterate(vectors, centroids, passes):
    """Centroids after some passes; a cell that lost all its vectors takes the worst fitting one."""
    labels = None
    for _ in range(passes):
        found = [nearest(vector, centroids) for vector in vectors]
        if labels == [cell for cell, _ in found]:
            break
        labels = [cell for cell, _ in found]
        worst = sorted(range(len(vectors)), key=lambda i: (found[i][1], i))
        moved = []
        for cell, centroid in enumerate(centroids):
            own = [vector for vector, label in zip(vectors, labels, strict=True) if label == cell]
            if not own:
                moved.append(vectors[worst.pop(0)])
                continue
            total = torch.stack(own).sum(0)
            moved.append(total / total.norm() if float(total.norm()) > 1e-6 else centroid)
        centroids = moved
    return torch.stack(list(centroids))

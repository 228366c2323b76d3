"""The exact nearest neighbors of one object among many embeddings, beside two other ways.

    python benchmarks/similar.py --rows 660000 --width 192 -n 100

The embeddings are in memory before the clock starts. Each line is the best of some repetitions; the
other ways must find the same rows. Let the machine do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import avx2
import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from perseid.science import nearest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=660_000)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=7)
    avx2.add_argument(parser)
    args = parser.parse_args()
    avx2.rerun(args)
    random = np.random.default_rng(0)
    features = random.standard_normal((args.rows, args.width), np.float32)
    query = features[args.rows // 2]
    brute = NearestNeighbors(n_neighbors=args.n, algorithm="brute").fit(features)
    ways: dict[str, Callable[[], NDArray[np.int64]]] = {
        "perseid": lambda: nearest(features, query, args.n).rows,
        "numpy": lambda: plain(features, query, args.n),
        "scikit-learn": lambda: brute.kneighbors(query[None], return_distance=False)[0],
    }
    best, rows = {}, {}
    for name, way in ways.items():
        taken = []
        for _ in range(args.repeat):
            began = time.perf_counter()
            rows[name] = way()
            taken.append(time.perf_counter() - began)
        best[name] = min(taken)
        same = len(set(rows["perseid"]) & set(rows[name]))
        ratio = best[name] / best["perseid"]
        print(f"{name:13} {best[name]:.3f} s  {ratio:5.1f} x  {same} of {args.n} rows the same")


def plain(features: NDArray[np.float32], query: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """What one writes in a notebook."""
    distance = np.linalg.norm(features - query, axis=1)
    near = np.argpartition(distance, n)[:n]
    return near[np.argsort(distance[near])]


if __name__ == "__main__":
    main()

"""What ratings are worth: precision at 100 after so many, for kinds that the score misses.

    perseid simulate survey --rows 6000 --seed 78 --held-out
    perseid run --data survey --out run
    python benchmarks/teach.py run

The survey is to be of a seed that neither the default model's training nor the settings of
`perseid.science.preference` ever saw (1, 3, 77, 177 and 178 are taken). A person is played who
rates what the page proposes, one object after the other: 5 for the wanted kinds, 1 for all others.
"""

from __future__ import annotations

import argparse

import numpy as np

import perseid
from perseid.explore import ExploredRun
from perseid.explore.run_features import RunFeatures, load_features
from perseid.science.preference import Preference, blended, proposals, quantiles

WANTED = {"merger, ring and tidal stream": (1, 2, 3), "merger": (1,), "ring": (2,),
          "tidal stream": (3,)}  # fmt: skip
TOP = 100


def taught(
    features: RunFeatures, score: np.ndarray, good: np.ndarray, count: int, seed: int
) -> tuple[float, int]:
    """Precision at 100 after `count` ratings, and how many of them were good ones."""
    quantile, rated, ratings = quantiles(score), np.empty(0, np.int64), np.empty(0)
    ranking = blended(quantile, None)
    while len(rated) < count:
        new = proposals(ranking, features.values, features.moments, rated, 1,
                        seed=1000 * seed + len(rated))  # fmt: skip
        rated = np.concatenate([rated, new])
        ratings = np.concatenate([ratings, np.where(good[new], 5, 1)])
        learned = Preference.of(features.values[rated], features.moments, ratings)
        ranking = blended(quantile, learned.values(features.values))
    return float(good[top(ranking)].mean()), int((ratings == 5).sum())


def top(ranking: np.ndarray) -> np.ndarray:
    """Rows of the highest values."""
    return np.argsort(-np.nan_to_num(ranking, nan=-np.inf), kind="stable")[:TOP]


def main() -> None:
    """Print one line a set of kinds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="of a simulated survey")
    parser.add_argument("--ratings", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5, help="drawings of what is proposed")
    args = parser.parse_args()
    explored = ExploredRun(perseid.open_run(args.run))
    table = explored.needed_table()
    features = load_features(explored.store, explored.run.manifest, table)
    score, label = table.numbers("anomaly_score"), table.numbers("label")
    print(f"{len(table):,} objects, {args.ratings} ratings, {args.repeats} repeats")
    for name, kinds in WANTED.items():
        good = np.isin(label, kinds)
        before = good[top(score)].mean()
        found = [taught(features, score, good, args.ratings, seed) for seed in range(args.repeats)]
        after = [precision for precision, _ in found]
        print(
            f"{name}: {good.sum()} objects; precision at 100 by the score {before:.2f}, after "
            f"ratings {np.mean(after):.2f} ({min(after):.2f} to {max(after):.2f}); "
            f"{np.mean([count for _, count in found]):.1f} rated good"
        )


if __name__ == "__main__":
    main()

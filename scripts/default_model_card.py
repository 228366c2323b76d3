"""The default model's card from its figures (see ``make_default_model.py``)."""

from __future__ import annotations

from typing import Any

HARD = 0.9
"""Kinds with an AUC below this are named as poorly found."""


def card(figures: dict[str, Any]) -> str:
    """The Markdown text of MODEL_CARD.md."""
    sections = [_head(figures), _data(figures["data"]), _training(figures), _redshift(figures)]
    return "\n".join([*sections, _anomalies(figures), _int8(figures["int8"]), LIMITS])


def _head(figures: dict[str, Any]) -> str:
    model = figures["model"]
    return f"""# The default model

A small AstroMAE ({model["parameters"]:,} parameters, {model["bytes"] / 1e6:.1f} MB) that predicts
the redshift of a galaxy from a 5-band cutout and its magnitudes, and gives features from which
unusual objects are found. Made by `scripts/make_default_model.py`; every figure below is written
by that script. License: Apache-2.0, as the rest of perseid; the photometry is from the Sloan
Digital Sky Survey (sdss.org/collaboration/citing-sdss).
"""


def _data(data: dict[str, Any]) -> str:
    n = data["objects"]
    return f"""## Data: what is real and what is simulated

- **Real**: the u, g, r, i, z magnitudes and spectroscopic redshifts of {data["real_galaxies"]:,}
  SDSS galaxies.
- **Simulated**: every pixel. `perseid simulate` draws a type, size, profile, noise and neighbors
  for each galaxy and renders them with GalSim so that the light adds up to the real magnitudes.
  Type and size are drawn given the real redshift (size-luminosity relation, red sequence), so
  they carry some information about it, as on the sky, but no more than the drawing rules hold.
- **Anomalies**: {100 * data["anomaly_rate"]:.0f} % of the cutouts get one of nine labeled kinds.
- **Split by object**, by a hash of the galaxy's number: {n["training"]:,} for training,
  {n["validation"]:,} for validation (choice of the epoch and of the baselines' settings),
  {n["test"]:,} held out. All drawings of a galaxy are on one side.
- Training survey: seed {data["training_seed"]}, {data["rounds"]} drawings of each galaxy that is
  not held out. Anomaly figures: seed {data["fresh_seed"]}, {data["fresh_rounds"]} drawings of each
  held-out galaxy.
"""


def _training(figures: dict[str, Any]) -> str:
    first, second = figures["data"]["pretrain"], figures["data"]["redshift"]
    return f"""## Training

Masked autoencoder on all training cutouts, anomalies among them, {first["pretrain_epochs"]}
epochs (half of the patches hidden); then, with the encoder frozen, the redshift on plain objects,
{second["epochs"]} epochs of L1 on dz = (z_pred - z) / (1 + z), running mean of the weights,
magnitudes jittered by about half of their errors. Seed {second["seed"]}, one core, torch
{figures["data"]["torch"]}.
"""


def _redshift(figures: dict[str, Any]) -> str:
    r = figures["redshift"]
    kind = "colors and a magnitude" if r["colours"] else "magnitudes"
    names = {
        "model": "**this model** (images and magnitudes)",
        "magnitudes": "magnitudes only (same network and training, images off)",
        "neighbours": f"nearest neighbors on {kind}, k = {r['k']}",
        "constant": "constant (median redshift)",
    }
    rows = [
        f"| {name} | {m['mae']:.5f} | {m['mse']:.6f} | {m['bias']:+.5f} | {m['nmad']:.5f} | "
        f"{m['r2']:.4f} | {100 * m['outliers']:.2f} % | {100 * m['outliers_low_z']:.2f} % |"
        for name, m in ((text, r[key]) for key, text in names.items())
    ]
    gains = [
        f"- {figure.upper()}, this model minus {text}: {d['value']:+.5f} "
        f"(95 % interval {d['low']:+.5f} to {d['high']:+.5f})"
        for key, text in (("magnitudes", "magnitudes only"), ("neighbours", "nearest neighbors"))
        for figure, d in r[f"over_{key}"].items()
    ]
    table = "\n".join(rows)
    return f"""## Redshift on {r["model"]["n"]:,} held-out plain objects

| | MAE | MSE | bias | NMAD | R2 | \\|dz\\| > 0.15 | \\|dz\\| > 0.05 |
| --- | --- | --- | --- | --- | --- | --- | --- |
{table}

MAE, MSE and R2 are of z, bias, NMAD and outliers of dz; NMAD = 1.48 median |dz - median dz|. The
redshifts of this sample have a standard deviation of {r["spread_of_z"]:.3f}: R2 must not be
compared with that of samples with another spread. The baselines have the same split; their
settings are chosen on the validation objects (magnitudes only: the best of three seeds).

{chr(10).join(gains)}

The intervals are paired bootstraps over the held-out objects; they do not hold the chance of
another training or another drawing of the images. Nothing was chosen on the held-out objects, but
figures of earlier trainings on them were seen while the network was being worked out.
"""


def _anomalies(figures: dict[str, Any]) -> str:
    a = figures["anomalies"]
    groups = list(a)
    rows = []
    for place, found in enumerate(a["both"]):
        cells = [
            f"{a[g][place]['roc_auc']:.3f} / {a[g][place]['average_precision']:.2f}" for g in groups
        ]
        rows.append(f"| {found['kind']} | {found['n']} | {' | '.join(cells)} |")
    hard = [d for d in a["both"][1:] if d["roc_auc"] < HARD]
    missed = ", ".join(f"{d['kind']} ({d['roc_auc']:.2f})" for d in hard) or "none"
    rare = [d for d in a["both"][1:] if d["average_precision"] < 0.3]
    lost = ", ".join(d["kind"] for d in rare) or "none"
    plain, table = a["both"][0]["plain"], "\n".join(rows)
    return f"""## Anomalies: {plain:,} plain and {a["both"][0]["n"]} labeled ones, fresh seed

ROC AUC / average precision of the score against the distribution of the whole survey:

| kind | objects | {" | ".join(groups)} |
| --- | --- | {" | ".join("---" for _ in groups)} |
{table}

Chance is 0.5 for AUC, and the kind's share of the objects (about
{a["both"][1]["n"] / (plain + a["both"][1]["n"]):.3f} for one kind) for average precision.

What it misses: kinds with an AUC below {HARD} are {missed}. Kinds of which a list of the most
anomalous objects holds few (average precision below 0.3): {lost}; they rank above most plain
objects, but below many plain ones that have odd neighbors. Faint galaxies hide anomalies of
shape in the noise, and an anomaly that looks like an ordinary galaxy of another type is not one to
this score.
"""


def _int8(change: dict[str, Any]) -> str:
    if not change:
        return ""
    return f"""## The int8 form

`default.int8.onnx` ({change["bytes"] / 1e6:.1f} MB; `--precision int8`, on processors with VNNI)
has the encoder's products in 8 bits. On {change["rows"]:,} held-out plain objects: MAE
{change["mae"][0]:.5f} becomes {change["mae"][1]:.5f}, NMAD {change["nmad"][0]:.5f} becomes
{change["nmad"][1]:.5f}, the largest change of a redshift is {change["largest"]:.4f}; anomaly scores
keep a rank correlation of {change["spearman"]:.4f} and {100 * change["top"]:.0f} % of the 100 most
anomalous objects.
"""


LIMITS = """## Limits

- Not for science on the real sky: it has never seen a real pixel. Train on your own cutouts
  (`perseid train`).
- It cannot show that images help with real redshifts: here they hold just the information that
  the simulation's rules put in.
- Anomaly figures are optimistic for the real sky, where plain objects are more varied.
- Made for SDSS-like cutouts: 32 x 32 pixels of 0.396", nanomaggies, AB magnitudes between about
  14 and 22, redshifts of 0.005 to 0.5. Outside of that it extrapolates.
"""

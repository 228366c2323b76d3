"""Every kind of anomaly: what it changes, what it leaves alone, and how often it comes."""

import numpy as np
import pytest

from perseid.survey.simulation import anomalies, sdss
from perseid.survey.simulation.anomalies import ANOMALY_KINDS
from perseid.survey.simulation.galaxies import Star, draw_galaxy
from perseid.survey.simulation.object_rendering import (
    draw_kind,
    object_ids,
    render_objects,
    streams,
)
from perseid.survey.simulation.render import render

SEEDS = range(12)


@pytest.fixture(scope="module")
def table():
    return sdss.load_table()


@pytest.fixture(scope="module")
def galaxy(table):
    row = int(np.argmin(np.abs(table.magnitudes[:, 2] - 17.0)))
    rng = np.random.default_rng(8)
    return draw_galaxy(table.magnitudes[row], float(table.redshift[row]), rng)


def rngs():
    return (np.random.default_rng([31, seed]) for seed in SEEDS)


def test_kinds_are_numbered_from_none():
    assert list(ANOMALY_KINDS) == list(range(10))
    assert ANOMALY_KINDS[0] == "none"
    assert len(set(ANOMALY_KINDS.values())) == 10


@pytest.mark.parametrize("kind", [kind for kind in ANOMALY_KINDS if kind])
def test_each_kind_is_seen_above_the_noise(table, kind):
    """Against the same object without it (same sky, same noise seed): many sigma somewhere."""
    ids = object_ids(41, 10, len(table))
    plain = render_objects(41, ids, anomaly_rate=0.0, table=table)
    strange = render_objects(41, ids, anomaly_rate=0.0, table=table, kinds=[kind] * len(ids))
    assert strange.label.tolist() == [kind] * len(ids)
    assert np.isfinite(strange.images).all()
    sigma = sdss.BACKGROUND_SIGMA[:, None, None]
    worst = (np.abs(strange.images - plain.images) / sigma).max(axis=(1, 2, 3))
    assert np.median(worst) > 8
    assert (worst > 4).mean() >= 0.9  # a dead band of u is hard to see where nothing shines


def test_sky_is_the_same_with_and_without_the_chance_of_anomalies(table):
    ids = object_ids(42, 60, len(table))
    none = render_objects(42, ids, anomaly_rate=0.0, table=table)
    some = render_objects(42, ids, anomaly_rate=0.3, table=table)
    plain = some.label == 0
    assert 0 < plain.sum() < 60
    assert some.images[plain].tobytes() == none.images[plain].tobytes()
    assert not none.label.any()


def test_rate_and_kinds_come_as_stated():
    label = np.array([draw_kind(streams(43, number)[3], 0.1) for number in range(8000)])
    assert np.mean(label > 0) == pytest.approx(0.1, abs=0.014)  # 4 sigma
    share = np.bincount(label, minlength=10)[1:] / (label > 0).sum()
    assert share == pytest.approx(np.full(9, 1 / 9), abs=0.045)
    assert {draw_kind(streams(43, number)[3], 0.0) for number in range(100)} == {0}


@pytest.mark.parametrize("make", [anomalies.merger, anomalies.tidal_stream])
def test_merger_and_stream_keep_the_real_flux(galaxy, make):
    for rng in rngs():
        total = sum(part.flux for part in make(galaxy, rng))
        assert total == pytest.approx(galaxy.flux, rel=1e-12)


def test_ring_adds_blue_light_around_the_galaxy(galaxy):
    for rng in rngs():
        scene = anomalies.ring(galaxy, rng)
        arc = scene[-1]
        assert scene[:-1] == galaxy.scene
        assert arc.flux[1] / arc.flux[2] > galaxy.flux[1] / galaxy.flux[2]
        assert np.hypot(arc.x - galaxy.x, arc.y - galaxy.y).min() > 1.4


def test_satellite_crosses_one_band(galaxy):
    image = render(galaxy.scene)
    for rng in rngs():
        extra = anomalies.satellite_trail(image, rng) - image
        bands = np.flatnonzero(extra.max(axis=(1, 2)) > 0)
        assert len(bands) == 1
        bright = extra[bands[0]] > 0.5 * extra.max()
        y, x = np.nonzero(bright)
        assert max(np.ptp(x), np.ptp(y)) > 8  # long


def test_cosmic_ray_is_sharp_and_in_one_band(galaxy):
    image = render(galaxy.scene)
    for rng in rngs():
        extra = anomalies.cosmic_ray(image, rng) - image
        assert (extra >= 0).all()
        hit = extra > 0
        assert hit.any(axis=(1, 2)).sum() == 1
        assert 1 <= hit.sum() <= 26
        assert extra[hit].min() > 2 * sdss.BACKGROUND_SIGMA[hit.any(axis=(1, 2))][0]


def test_bad_column_is_whole_columns(galaxy):
    image = render(galaxy.scene)
    for rng in rngs():
        extra = anomalies.bad_column(image, rng) - image
        changed = extra != 0
        assert changed.any(axis=(1, 2)).sum() == 1
        columns = changed.any(axis=(0, 1))
        assert columns.sum() in (1, 2)
        assert changed[changed.any(axis=(1, 2))][0][:, columns].all()


def test_saturated_star_keeps_below_full_scale_and_bleeds_along_columns(galaxy):
    image = render(galaxy.scene)
    for rng in rngs():
        out = anomalies.saturated_star(image, rng)
        limit = sdss.SATURATION[:, None, None]
        assert (out <= limit * (1 + 1e-9)).all()
        full = out[2] >= 0.999 * limit[2]
        assert full.any()
        assert full.sum(axis=0).max() > full.sum(axis=1).max() - 3  # longer along columns


def test_bleeding_moves_charge_and_loses_none_inside():
    column = np.ones(32)
    column[16] = 50.0
    out = anomalies._bleed(column, 10.0)
    assert out.sum() == pytest.approx(column.sum())
    assert out.max() == pytest.approx(10.0)
    assert (out[12:21] > 1.0).sum() > 3
    quiet = np.ones(32)
    assert anomalies._bleed(quiet, 10.0) is quiet


def test_band_offset_moves_one_band_by_pixels():
    scene = (Star(0.0, 0.0, np.full(5, 100.0)),)
    y, x = np.mgrid[:32, :32]
    for rng in rngs():
        image = render(scene, anomalies._band_shift(rng))
        center = np.stack([(image * axis).sum((1, 2)) / image.sum((1, 2)) for axis in (x, y)])
        off = np.hypot(*(center - 15.5))
        assert (off > 1.8).sum() == 1
        assert (off < 0.05).sum() == 4


def test_dead_band_is_dead(galaxy):
    image = render(galaxy.scene) + 1.0
    for rng in rngs():
        out = anomalies.dead_band(image, rng)
        changed = (out != image).any(axis=(1, 2))
        assert changed.sum() == 1
        assert np.abs(np.median(out[changed][0][-8:])) < sdss.BACKGROUND_SIGMA[changed][0]

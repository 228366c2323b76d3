"""Objects of a simulated survey: the table, the physics, the pixels, the chance."""

import galsim
import numpy as np
import pytest

from perseid.survey.simulation import sdss
from perseid.survey.simulation.galaxies import (
    Points,
    Sersic,
    Star,
    angular_distance,
    component_radii,
    draw_galaxy,
    draw_neighbors,
    early_probability,
    median_radius,
    star_flux,
)
from perseid.survey.simulation.object_rendering import (
    held_out,
    object_ids,
    render_objects,
    table_rows_of,
)
from perseid.survey.simulation.render import render
from perseid.survey.splits import TEST, assign_split

ARCSEC_TO_PIXEL = 1 / sdss.PIXEL


@pytest.fixture(scope="module")
def table():
    return sdss.load_table()


def galaxies(table, count, seed=3):
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        row = int(rng.integers(len(table)))
        yield draw_galaxy(table.magnitudes[row], float(table.redshift[row]), rng)


def drawn_by_galsim(scene, band, size=sdss.SIZE, folding=0.005):
    """The same components, drawn by GalSim's own drawImage with its own choices."""
    parts = []
    for part in scene:
        if isinstance(part, Sersic):
            profile = galsim.Sersic(part.index, half_light_radius=part.radius)
            profile = profile.shear(q=part.axis_ratio, beta=part.angle * galsim.radians)
            parts.append(profile.withFlux(part.flux[band]).shift(part.x, part.y))
        elif isinstance(part, Star):
            parts.append(galsim.DeltaFunction(flux=part.flux[band]).shift(part.x, part.y))
        else:
            for x, y, weight in zip(part.x, part.y, part.weight, strict=True):
                spot = galsim.Gaussian(sigma=part.sigma, flux=weight * part.flux[band])
                parts.append(spot.shift(x, y))
    psf = galsim.Moffat(beta=sdss.PSF_BETA, fwhm=sdss.PSF_FWHM[band])
    params = galsim.GSParams(folding_threshold=folding)
    seen = galsim.Convolve(galsim.Add(parts), psf, gsparams=params)
    return seen.drawImage(nx=size, ny=size, scale=sdss.PIXEL, dtype=float).array


def test_table_is_the_real_one(table):
    assert len(table) == 19817
    assert table.magnitudes.shape == table.errors.shape == (19817, 5)
    assert table.magnitudes.dtype == table.redshift.dtype == np.float32
    assert np.isfinite(table.magnitudes).all()
    assert 0.005 < table.redshift.min() < table.redshift.max() < 0.6
    assert (table.source == "mlz").sum() == 9966
    assert np.isfinite(table.ra).sum() == np.isfinite(table.dec).sum() == 9851


def test_table_keeps_the_color_redshift_relation(table):
    """Rows of magnitudes and redshifts still belong together: g - r reddens with distance."""
    g_minus_r = table.magnitudes[:, 1] - table.magnitudes[:, 2]
    assert np.corrcoef(g_minus_r, table.redshift)[0, 1] > 0.6


def test_flux_and_magnitude():
    assert sdss.flux(np.array([22.5, 20.0])) == pytest.approx([1.0, 10.0])
    mags = np.array([14.0, 17.77, 22.0])
    assert sdss.magnitude(sdss.flux(mags)) == pytest.approx(mags)


def test_background_noise_has_the_stated_sigma_and_no_offset():
    noise = sdss.add_noise(np.zeros((5, 400, 400)), np.random.default_rng(1))
    assert noise.std(axis=(1, 2)) == pytest.approx(sdss.BACKGROUND_SIGMA, rel=0.02)
    assert np.all(np.abs(noise.mean(axis=(1, 2))) < 5 * sdss.BACKGROUND_SIGMA / 400)


def test_photon_noise_grows_with_the_light():
    light = np.full((5, 300, 300), 3.0)
    noise = sdss.add_noise(light, np.random.default_rng(2)) - light
    expected = np.sqrt(sdss.BACKGROUND_SIGMA**2 + 3.0 / sdss.ELECTRONS)
    assert noise.std(axis=(1, 2)) == pytest.approx(expected, rel=0.02)


def test_distances_and_sizes_against_known_values():
    # flat, H0 = 70, Omega_m = 0.3: astropy's FlatLambdaCDM(70, 0.3)
    from astropy.cosmology import FlatLambdaCDM

    for redshift in (0.01, 0.1, 0.5):
        expected = FlatLambdaCDM(70, 0.3).angular_diameter_distance(redshift).value
        assert angular_distance(redshift) == pytest.approx(expected, rel=1e-4)
    # Shen et al. 2003: late types of M* measure about 3 kpc, with ln scatter between 0.25 and 0.48
    late, scatter = median_radius(-20.52, early=False)
    assert late == pytest.approx(3.2, abs=0.2)
    assert scatter == pytest.approx((0.25 + 0.48) / 2)
    assert median_radius(-16.0, early=False)[1] == pytest.approx(0.48, abs=0.01)
    assert median_radius(-22.0, True)[0] / median_radius(-21.0, True)[0] == pytest.approx(10**0.24)


def test_red_galaxies_are_early_and_blue_ones_late():
    assert early_probability(0.98, 0.1) > 0.9
    assert early_probability(0.5, 0.1) < 0.01
    assert early_probability(0.98, 0.25) < 0.01  # red nearby, blue at that redshift


@pytest.mark.parametrize(("share", "index", "ratio"), [(0.1, 1.5, 0.2), (0.8, 4.0, 0.6), (1, 4, 1)])
def test_bulge_and_disk_together_have_the_drawn_half_light_radius(share, index, ratio):
    bulge, disk = component_radii(2.0, share, index, ratio)
    assert bulge == pytest.approx(ratio * disk)
    profile = galsim.Add(
        galsim.Sersic(index, half_light_radius=bulge, flux=share),
        galsim.Exponential(half_light_radius=disk, flux=max(1 - share, 1e-9)),
    )
    image = profile.drawImage(scale=0.05, nx=121, ny=121, dtype=float).array
    y, x = np.mgrid[-60:61, -60:61] * 0.05
    inside = image[np.hypot(x, y) < 2.0].sum()
    assert inside == pytest.approx(0.5, abs=0.03)


def test_components_sum_to_the_real_flux_in_every_band(table):
    for galaxy in galaxies(table, 200):
        total = sum(part.flux for part in galaxy.scene)
        assert total == pytest.approx(galaxy.flux, rel=1e-12)
        assert all((part.flux >= 0).all() for part in galaxy.scene)


def test_bulge_is_redder_than_the_galaxy(table):
    for galaxy in galaxies(table, 50):
        bulge = galaxy.scene[0].flux
        if (bulge < 0.97 * galaxy.flux).all():
            assert bulge[1] / bulge[3] < galaxy.flux[1] / galaxy.flux[3]


def test_both_types_and_plausible_sizes_come(table):
    drawn = list(galaxies(table, 400))
    assert 0.4 < np.mean([galaxy.early for galaxy in drawn]) < 0.8
    assert 1.5 < np.median([galaxy.radius for galaxy in drawn]) < 3.5
    late = [galaxy for galaxy in drawn if not galaxy.early]
    assert all(isinstance(galaxy.scene[-1], Points) for galaxy in late)


def test_rendering_agrees_with_galsim(table):
    """The transform taken once for five bands, against GalSim band by band: 0.2 % of the peak."""
    for galaxy in galaxies(table, 12, seed=9):
        image = render(galaxy.scene)
        for band in (0, 4):
            expected = drawn_by_galsim(galaxy.scene, band)
            assert np.abs(image[band] - expected).max() < 0.002 * expected.max()


def test_stars_agree_with_galsim():
    star = Star(1.234, -0.77, star_flux(17.0, 0.6))
    image = render((star,))
    for band in range(5):
        expected = drawn_by_galsim((star,), band)
        assert np.abs(image[band] - expected).max() < 0.001 * expected.max()


def test_image_holds_the_flux_of_the_magnitude():
    """A small round galaxy of known magnitudes: nearly all light lies on the cutout."""
    magnitudes = np.array([19.5, 18.2, 17.5, 17.2, 17.0])
    disk = Sersic(1.0, 0.6, 0.9, 0.3, 0.1, -0.1, sdss.flux(magnitudes))
    found = sdss.magnitude(render((disk,)).sum(axis=(1, 2)))
    assert found == pytest.approx(magnitudes, abs=0.02)


def test_aperture_flux_of_drawn_galaxies(table):
    """What a cutout misses of the real flux is what GalSim says lies beyond its edge.

    To 1 %: the faint wings that the periodic grid folds back (GalSim's own default: 0.5 %).
    """
    for galaxy in galaxies(table, 6, seed=21):
        found = render(galaxy.scene).sum(axis=(1, 2)) / galaxy.flux
        wide = drawn_by_galsim(galaxy.scene, 2, size=256, folding=5e-4)
        middle = wide[112:144, 112:144].sum() / galaxy.flux[2]
        assert found[2] == pytest.approx(middle, abs=0.01)
        assert 0.2 < found[2] <= 1.0


def test_a_position_moves_the_light_to_its_pixel():
    spot = Points(np.array([2.0]), np.array([-3.0]), np.ones(1), 0.3, np.ones(5))
    image = render((spot,))[2]
    y, x = np.mgrid[:32, :32]
    assert (image * x).sum() / image.sum() == pytest.approx(15.5 + 2.0 * ARCSEC_TO_PIXEL, abs=0.2)
    assert (image * y).sum() / image.sum() == pytest.approx(15.5 - 3.0 * ARCSEC_TO_PIXEL, abs=0.2)


def test_psf_is_sharpest_in_z():
    peaks = render((Star(0.0, 0.0, np.ones(5)),)).max(axis=(1, 2))
    assert (np.diff(peaks) > 0).all()


def test_neighbors_are_ordinary(table):
    scenes = [draw_neighbors(table, np.random.default_rng([4, n])) for n in range(1000)]
    parts = [part for scene in scenes for part in scene]
    assert 0.45 < len(parts) / 1000 < 0.67
    assert all(np.hypot(part.x, part.y) >= 2.0 for part in parts)
    assert all(0.6 < part.flux[2] < 260 for part in parts)  # r between 23 and 16.5


def test_object_ids_show_every_real_galaxy_once_then_again():
    ids = object_ids(seed=5, rows=250, galaxies=100)
    assert len(set(ids.tolist())) == 250
    rows = table_rows_of(ids)
    assert sorted(rows[:100].tolist()) == list(range(100))
    assert sorted(rows[100:200].tolist()) == list(range(100))
    assert rows[:100].tolist() != rows[100:200].tolist()
    assert object_ids(5, 30, 100).tolist() == ids[:30].tolist()
    assert object_ids(6, 30, 100).tolist() != ids[:30].tolist()


def test_any_part_in_any_order_has_the_same_bits(table):
    ids = object_ids(11, 24, len(table))
    whole = render_objects(11, ids, anomaly_rate=0.5, table=table)
    picked = np.array([17, 3, 20])
    part = render_objects(11, ids[picked], anomaly_rate=0.5, table=table)
    assert part.images.tobytes() == whole.images[picked].tobytes()
    assert part.label.tolist() == whole.label[picked].tolist()
    other = render_objects(12, ids, anomaly_rate=0.5, table=table)
    assert not np.array_equal(other.images, whole.images)


def test_magnitudes_and_redshifts_are_those_of_the_table(table):
    ids = object_ids(2, 10, len(table))
    cutouts = render_objects(2, ids, anomaly_rate=0.0, table=table)
    rows = table_rows_of(cutouts.object_id)
    assert np.array_equal(cutouts.magnitudes, table.magnitudes[rows])
    assert np.array_equal(cutouts.redshift, table.redshift[rows])
    assert cutouts.images.dtype == np.float32
    assert cutouts.label.dtype == np.int32
    assert np.isfinite(cutouts.images).all()


def test_the_same_real_galaxy_in_a_later_round_is_drawn_anew(table):
    first = render_objects(2, [123], anomaly_rate=0.0, table=table)
    again = render_objects(2, [100_123], anomaly_rate=0.0, table=table)
    assert np.array_equal(first.magnitudes, again.magnitudes)
    assert not np.array_equal(first.images, again.images)


def test_held_out_galaxies_are_the_test_side_of_the_split():
    rows = held_out(19_817)
    assert 0.19 < len(rows) / 19_817 < 0.21
    assert (assign_split(rows) == TEST).all()
    ids = object_ids(4, len(rows) + 10, rows)
    assert np.isin(table_rows_of(ids), rows).all()
    assert len(np.unique(ids)) == len(ids)

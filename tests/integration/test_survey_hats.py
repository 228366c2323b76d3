"""A HATS catalogue with images as in the Multimodal Universe, made by hats-import, is a survey."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import SIDE, tiny_model

from perseid import Catalogue
from perseid.api.survey import open_survey
from perseid.pipeline.initialize import initialize, plan
from perseid.pipeline.manifest import assign
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.storage import Storage
from perseid.survey.discovery import Layout, discover
from perseid.survey.reader import read_cutouts

ROWS, BANDS = 300, 5


def structured(images: np.ndarray) -> pa.StructArray:
    """The image column of the Multimodal Universe: a structure of lists, one entry per band."""
    kind = pa.list_(pa.list_(pa.list_(pa.float32())))
    flux = pa.array(images.tolist(), kind)
    ones = pa.array([[1.0] * BANDS] * len(images))
    parts = {
        "band": pa.array([list("ugriz")] * len(images)),
        "flux": flux,
        "ivar": pa.array(np.ones_like(images).tolist(), kind),
        "mask": pa.array((images > 1).tolist(), pa.list_(pa.list_(pa.list_(pa.bool_())))),
        "psf_fwhm": ones,
        "scale": ones,
    }
    return pa.StructArray.from_arrays(list(parts.values()), names=list(parts))


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    rng = np.random.default_rng(11)
    images = rng.normal(size=(ROWS, BANDS, SIDE, SIDE)).astype(np.float32)
    return pa.table(
        {
            "object_id": [f"MMU {3963300000000000000 + n}" for n in range(ROWS)],
            "ra": rng.uniform(0, 40, ROWS),
            "dec": rng.uniform(-20, 20, ROWS),
            "magnitude": list(rng.uniform(15, 22, (ROWS, BANDS)).astype(np.float32)),
            "FLUX_G": rng.random(ROWS).astype(np.float32),
            "image": structured(images),
        }
    )


@pytest.fixture(scope="module")
def catalogue(rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows as a HATS catalogue of uneven pixels."""
    folder = tmp_path_factory.mktemp("hats")
    (folder / "in").mkdir()
    pq.write_table(rows, folder / "in" / "all.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dask.distributed import Client
        from hats_import.catalog.arguments import ImportArguments
        from hats_import.pipeline import pipeline_with_client

        how = ImportArguments(
            output_artifact_name="galaxies",
            output_path=str(folder),
            input_path=str(folder / "in"),
            file_reader="parquet",
            ra_column="ra",
            dec_column="dec",
            pixel_threshold=60,
            highest_healpix_order=5,
            progress_bar=False,
        )
        with Client(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as c:
            pipeline_with_client(how, c)
    return folder / "galaxies"


def request(catalogue: Path | str, folder: Path, **given: object) -> RunRequest:
    model = str(tiny_model(folder / "tiny.onnx"))
    keys = {"data": str(catalogue), "results": str(folder / "run"), "model": model, **given}
    return RunRequest.parse(keys)


def test_the_files_of_the_pixels_are_the_survey(catalogue: Path) -> None:
    listing = discover(catalogue)
    assert listing.layout is Layout.HATS
    assert listing.notes == ()
    assert len(listing.partitions) == len(list(catalogue.rglob("Npix=*.parquet"))) > 3
    assert discover(catalogue / "dataset").layout is Layout.HATS
    assert len(open_survey(catalogue)) == len(listing.partitions)


def test_a_run_over_it_predicts_every_row_once(
    rows: pa.Table, catalogue: Path, tmp_path: Path
) -> None:
    for item in initialize(request(catalogue, tmp_path, world_size=3, keep="FLUX_G")).items:
        record = work(item)
        assert not record.failed_partitions
    summary = summarize(Storage(tmp_path / "run"))
    assert summary["status"] == "complete"
    got = pq.read_table(tmp_path / "run" / "catalogue.parquet").to_pydict()
    assert len(got["row"]) == ROWS
    order = np.argsort(got["object_id"])
    for name in ("object_id", "ra", "dec", "FLUX_G"):
        wanted = rows[name].to_pylist()
        assert [got[name][n] for n in order] == [wanted[n] for n in np.argsort(rows["object_id"])]


def test_from_hats_to_hats(rows: pa.Table, catalogue: Path, tmp_path: Path) -> None:
    """What came out is opened by lsdb, is valid, and is matched by position with what went in."""
    import lsdb
    from hats.io.validation import is_valid_catalog

    for item in initialize(request(catalogue, tmp_path, world_size=2, keep="FLUX_G")).items:
        work(item)
    summarize(Storage(tmp_path / "run"))
    written = Catalogue(Storage(tmp_path / "run")).write(f"{tmp_path}/out/")
    assert written.rows == ROWS
    assert is_valid_catalog(tmp_path / "out", strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = lsdb.open_catalog(tmp_path / "out")
        given = lsdb.open_catalog(catalogue, columns=["object_id", "ra", "dec"])
        both = out.crossmatch(given, radius_arcsec=0.01, suffixes=("", "_in"),
                              suffix_method="all_columns").compute()  # fmt: skip
    assert len(both) == ROWS
    assert both["object_id"].tolist() == both["object_id_in"].tolist()
    assert sorted(both["object_id"]) == sorted(rows["object_id"].to_pylist())
    assert np.isfinite(both["z_pred"]).all()


def test_the_pixels_of_an_image_are_its_flux(rows: pa.Table, catalogue: Path) -> None:
    wanted = dict(zip(rows["object_id"].to_pylist(), rows["image"].to_pylist(), strict=True))
    got = read_cutouts(next(catalogue.rglob("Npix=*.parquet")))
    for name, image in zip(got.object_id, got.images, strict=True):
        assert np.array_equal(image, np.float32(wanted[name]["flux"]))


def test_ranks_have_as_many_rows_as_can_be(catalogue: Path, tmp_path: Path) -> None:
    manifest = plan(request(catalogue, tmp_path, world_size=3))
    counts = [sum(ref.rows or 0 for ref in manifest.of_rank(rank)) for rank in range(3)]
    assert sum(counts) == ROWS
    sizes = [ref.rows or 0 for ref in manifest.partitions]
    assert max(counts) == min(
        max(sum(sizes[:a]), sum(sizes[a:b]), sum(sizes[b:]))
        for a in range(1, len(sizes)) for b in range(a + 1, len(sizes) + 1)
    )  # fmt: skip


def test_without_its_metadata_sizes_stand_for_rows(catalogue: Path, tmp_path: Path) -> None:
    shutil.copytree(catalogue, tmp_path / "copy")
    (tmp_path / "copy" / "dataset" / "_metadata").unlink()
    manifest = plan(request(tmp_path / "copy", tmp_path, world_size=2))
    assert {ref.rows for ref in manifest.partitions} == {None}
    assert manifest.assignment == assign(
        len(manifest.partitions), 2, [ref.size for ref in manifest.partitions]
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_of_a_collection_only_the_main_catalogue_is_the_survey(
    encoding: str, catalogue: Path, tmp_path: Path
) -> None:
    """Its margin repeats objects of the neighboring pixels."""
    for name in ("galaxies", "galaxies_margin"):
        shutil.copytree(catalogue, tmp_path / "all" / name)
    about = "hats_primary_table_url=galaxies\nobs_collection=all\nall_margins=galaxies_margin\n"
    (tmp_path / "all" / "collection.properties").write_text(about, encoding=encoding)
    listing = discover(tmp_path / "all")
    assert listing.layout is Layout.HATS
    assert {info.key.split("/")[0] for info in listing.partitions} == {"galaxies"}
    assert plan(request(tmp_path / "all", tmp_path)).partitions[0].rows


def test_several_files_of_one_pixel_are_all_read(catalogue: Path, tmp_path: Path) -> None:
    """HATS may have a folder for a pixel, and the files in it count together."""
    shutil.copytree(catalogue, tmp_path / "copy")
    pixel = next((tmp_path / "copy").rglob("Npix=*.parquet"))
    whole = pq.read_table(pixel)
    pixel.unlink()
    folder = pixel.with_suffix("")
    folder.mkdir()
    pq.write_table(whole.slice(0, 5), folder / "part0.parquet")
    pq.write_table(whole.slice(5), folder / "part1.parquet")
    keys = [info.key for info in discover(tmp_path / "copy").partitions]
    assert sum(key.endswith(("part0.parquet", "part1.parquet")) for key in keys) == 2


def test_it_is_read_from_an_object_store(catalogue: Path, tmp_path: Path) -> None:
    store = Storage("memory://hats/galaxies")
    for path in catalogue.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(catalogue).as_posix(), path)
    manifest = plan(request("memory://hats/galaxies", tmp_path))
    assert sum(ref.rows or 0 for ref in manifest.partitions) == ROWS


def test_units_of_its_common_metadata_are_in_the_catalogue(catalogue: Path, tmp_path: Path) -> None:
    shutil.copytree(catalogue, tmp_path / "copy")
    common = tmp_path / "copy" / "dataset" / "_common_metadata"
    header = (
        b'<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE><TABLE>'
        b'<FIELD name="FLUX_G" datatype="float" unit="nJy" ucd="phot.flux;em.opt.B">'
        b"<DESCRIPTION>Flux in g</DESCRIPTION></FIELD></TABLE></RESOURCE></VOTABLE>"
    )
    schema = pq.read_schema(common)
    pq.write_metadata(schema.with_metadata({"IVOA.VOTable-Parquet.content": header}), common)
    specs = plan(request(tmp_path / "copy", tmp_path, keep="FLUX_G")).settings.survey_columns
    (flux,) = [spec for spec in specs or () if spec.name == "FLUX_G"]
    assert (flux.unit, flux.ucd, flux.description) == ("nJy", "phot.flux;em.opt.B", "Flux in g")


@pytest.mark.parametrize(
    ("weights", "ranks", "wanted"),
    [([9, 1, 1, 1, 1], 2, (1, 4)), ([1, 1, 1, 9], 2, (3, 1)), ([5], 3, (1, 0, 0)),
     ([0, 0, 0], 2, (2, 1)), ([3, 3, 3, 3], 4, (1, 1, 1, 1)), ([1, 9, 1], 2, (1, 2))],
)  # fmt: skip
def test_balanced_assignment(weights: list[int], ranks: int, wanted: tuple[int, ...]) -> None:
    got = assign(len(weights), ranks, weights)
    assert sum(got) == len(weights)
    assert sorted(got, reverse=True) == sorted(wanted, reverse=True)

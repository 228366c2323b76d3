"""Column names: ours, and the names that common surveys and tools use for the same columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from perseid.errors import BadInputError

NAMES = ("image", "magnitude", "redshift", "object_id", "label")
"""Columns as our files name them, in the order of the fields of `Cutouts`."""

POSITION = ("ra", "dec")
"""Coordinates of an object, deg; the catalogue has them if the survey does."""

_PLURALS = {f"{name}s": name for name in NAMES}
KNOWN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "image": ("cutout", "cutouts", "image_array"),
        "magnitude": ("mags",),
        "redshift": ("z_spec", "zspec", "spec_z", "specz", "specz_redshift"),
        "object_id": ("objid", "objectid", "specobjid", "targetid", "source_id", "coadd_object_id"),
        "label": ("ans",),
        "ra": ("target_ra", "raj2000", "ra_icrs", "ra_deg", "ramean", "alpha_j2000", "_raj2000"),
        "dec": (
            "target_dec",
            "dej2000",
            "decj2000",
            "de_icrs",
            "dec_icrs",
            "dec_deg",
            "decmean",
            "delta_j2000",
            "_dej2000",
        ),
    }
)
"""Other names of each column, in any case, preferred ones first: of SDSS (objID, specObjID), DESI
(TARGETID, TARGET_RA, Z_SPEC), Gaia (source_id), DES (COADD_OBJECT_ID), HSC (specz_redshift),
the Multimodal Universe in HDF5 (image_array), Galaxy10 (ans), VizieR (RAJ2000, RA_ICRS), Pan-STARRS
(raMean), SExtractor (ALPHA_J2000). ``z`` is left out because it is also the name of a band."""


ColumnNames = Mapping[str, tuple[str, ...]]
"""Maps our name of a column to its name in the survey's files; for magnitudes also one name per
band."""
NO_NAMES: ColumnNames = MappingProxyType({})
"""No names are given: every column is looked for under its usual names."""
BAND = "magnitude."
"""Prefix of the name of one magnitude band, if each band is a column of its own."""
FURTHER = "further."
"""Prefix of the name of a further column while a file is read."""


def column_names(given: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """Normalize the column names of a request: one name each, or for magnitudes a list with one per
    band.

    Raises `BadInputError` for a name that is not text, or a column that is named twice. Which
    columns may be named depends on the model: see `check_known`.
    """
    names: dict[str, tuple[str, ...]] = {}
    for column, value in given.items():
        name = canonical(column)
        name = name if name in (*NAMES, *POSITION) else column
        listed = value if isinstance(value, (list, tuple)) else [value]
        if not listed or not all(isinstance(one, str) and one for one in listed):
            raise BadInputError(f"{column} is {value!r}: give the name of the survey's column")
        if len(listed) > 1 and name != "magnitude":
            raise BadInputError(f"{column} is {value!r}: only magnitudes are several columns")
        if name in names:
            raise BadInputError(f"the survey's column for {name} is named twice: name one")
        names[name] = tuple(str(one) for one in listed)
    return names


def check_known(names: ColumnNames, inputs: Iterable[str] = ()) -> None:
    """Raise `BadInputError` for a column that is neither one of ours nor one of a model's
    `inputs`."""
    known = [*NAMES, *POSITION, *inputs]
    for name in names:
        if name not in known:
            raise BadInputError(f"{name!r} is not a column: use {', '.join(dict.fromkeys(known))}")


def parse_columns(option: str) -> dict[str, str | list[str]]:
    """Parse ``object_id=TARGETID,magnitude=[MAG_G,MAG_R]`` into the form of a request.

    Raises `BadInputError` if the text does not have this form, or names a column twice.
    """
    given: dict[str, str | list[str]] = {}
    for part in re.split(r",(?![^\[]*\])", option):
        column, equals, value = (text.strip() for text in part.partition("="))
        if not equals or not column or not value:
            raise BadInputError(
                f"{part!r} does not name a column: give COLUMN=NAME, such as object_id=TARGETID, "
                "or magnitude=[MAG_G,MAG_R]"
            )
        if column in given:
            raise BadInputError(f"the survey's column for {column} is named twice: name one")
        many = value.startswith("[") and value.endswith("]")
        given[column] = [one.strip() for one in value[1:-1].split(",")] if many else value
    return given


def is_band(name: str) -> bool:
    """Whether `pick_columns` gave this name to a single magnitude band."""
    return name.startswith(BAND)


def is_further(name: str) -> bool:
    """Whether `pick_columns` gave this name to a further column."""
    return name.startswith(FURTHER)


def canonical(name: str) -> str:
    """Map a name in any case, singular or plural, to its form in `NAMES`; other names to lower
    case."""
    lower = name.lower()
    return _PLURALS.get(lower, lower)

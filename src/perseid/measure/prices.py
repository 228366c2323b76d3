"""All prices that perseid uses, each with its date, region and source; no other module has prices.

These are public list prices in USD of the first usage tier, without free tier, discounts or taxes.
A JSON file gives those of another region, date or contract (`load_prices`), e.g.
``{"lambda_gb_second_x86": 0.0000175}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from perseid.errors import BadInputError
from perseid.measure.fields import as_number
from perseid.textfile import read_object

REGION = "us-east-1"
DATE = "2026-11-22"
"""Date for which the prices below are stated. Those of Lambda compute and requests, Fargate, Step
Functions and logs were compared with public statements of them; those of /tmp, S3 and public IPv4
addresses are as commonly published and were not compared again."""

ARCHITECTURES = ("x86", "arm")
COURSE_GB_SECOND = 0.00001667
"""Rounded x86 price per GB-second of the published course tables, for their "memory used" variant
only."""


@dataclass(frozen=True)
class Price:
    """One list price, with its source and date."""

    usd: float
    """USD per unit."""
    unit: str
    """The unit, in words."""
    source: str
    """Public page that states the price."""
    date: str = DATE
    """Date for which it is stated, ISO 8601."""
    region: str = REGION


_LAMBDA = "aws.amazon.com/lambda/pricing"
_STEPS = "aws.amazon.com/step-functions/pricing"
_FARGATE = "aws.amazon.com/fargate/pricing"
_S3 = "aws.amazon.com/s3/pricing"


@dataclass(frozen=True)
class Prices:
    """All prices; each field can be replaced."""

    lambda_gb_second_x86: Price = Price(0.0000166667, "GB-second of configured memory", _LAMBDA)
    lambda_gb_second_arm: Price = Price(0.0000133334, "GB-second of configured memory", _LAMBDA)
    lambda_request: Price = Price(0.20e-6, "request", _LAMBDA)
    lambda_tmp_gb_second: Price = Price(0.0000000309, "GB-second of /tmp above 512 MB", _LAMBDA)
    state_transition: Price = Price(0.025e-3, "state transition of a standard workflow", _STEPS)
    express_request: Price = Price(1.00e-6, "execution of an express workflow", _STEPS)
    express_gb_second: Price = Price(
        0.00001667, "GB-second of an express workflow, 64 MB steps", _STEPS
    )
    s3_get: Price = Price(0.0004e-3, "GET request", _S3)
    s3_put: Price = Price(0.005e-3, "PUT or LIST request", _S3)
    s3_gb_month: Price = Price(0.023, "GB-month, standard class", _S3)
    fargate_vcpu_hour_x86: Price = Price(0.04048, "vCPU-hour, Linux, at least one minute", _FARGATE)
    fargate_gb_hour_x86: Price = Price(0.004445, "GB-hour, Linux", _FARGATE)
    fargate_vcpu_hour_arm: Price = Price(0.03238, "vCPU-hour, Linux, at least one minute", _FARGATE)
    fargate_gb_hour_arm: Price = Price(0.00356, "GB-hour, Linux", _FARGATE)
    ipv4_hour: Price = Price(0.005, "hour of a public IPv4 address", "aws.amazon.com/vpc/pricing")
    public_transfer_gb: Price = Price(
        0.01, "GB out of or into a public address, within a region", "aws.amazon.com/ec2/pricing"
    )
    logs_gb: Price = Price(0.50, "GB of log ingested", "aws.amazon.com/cloudwatch/pricing")

    def lambda_gb_second(self, architecture: str) -> Price:
        """The compute price of ``x86`` or ``arm``; raises `BadInputError` for another word."""
        return self._of("lambda_gb_second", architecture)

    def fargate_vcpu_hour(self, architecture: str) -> Price:
        """The vCPU price of ``x86`` or ``arm``."""
        return self._of("fargate_vcpu_hour", architecture)

    def fargate_gb_hour(self, architecture: str) -> Price:
        """The memory price of ``x86`` or ``arm``."""
        return self._of("fargate_gb_hour", architecture)

    def __iter__(self) -> Iterator[tuple[str, Price]]:
        for field in fields(self):
            yield field.name, getattr(self, field.name)

    def stamp(self) -> str:
        """Region(s) and date(s) of these prices, for footnotes."""
        regions = sorted({price.region for _, price in self})
        dates = sorted({price.date for _, price in self})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        return f"list prices of {', '.join(regions)}, as of {when}"

    def _of(self, name: str, architecture: str) -> Price:
        if architecture not in ARCHITECTURES:
            raise BadInputError(f"no prices for {architecture!r}: the architecture is x86 or arm")
        price: Price = getattr(self, f"{name}_{architecture}")
        return price


def load_prices(path: str | Path) -> Prices:
    """Read a JSON file of prices, which replace those of the built-in list.

    Each key is a field of `Prices`; each value is a number (USD per unit) or an object with ``usd``
    and any of ``unit``, ``source``, ``date``, ``region``.

    Raises
    ------
    BadInputError
        The file is missing or is not a JSON object, or a key or value in it is not a price.
    """
    values = read_object(path, "the prices")
    prices, known = Prices(), dict(Prices())
    for name, value in values.items():
        if name not in known:
            raise BadInputError(
                f"{path}: no price is called {name!r}; known are {', '.join(known)}"
            )
        prices = replace(prices, **{name: _override(known[name], value, f"{path}: {name}")})
    return prices


def prices_of(given: Prices | str | Path | None) -> Prices:
    """Given prices, prices from a file (see `load_prices`), or the built-in list for None."""
    if given is None or isinstance(given, Prices):
        return given or Prices()
    return load_prices(given)


def _override(price: Price, value: object, where: str) -> Price:
    changes = dict(value) if isinstance(value, Mapping) else {"usd": value}
    # A price that was given must not appear with the source of the one that it replaces.
    changes = {"source": "given by the user"} | changes
    unknown = set(changes) - {field.name for field in fields(Price)}
    usd = as_number(changes.pop("usd", price.usd))
    # One message for all mistakes: it says what a price must look like.
    if unknown or usd is None or usd < 0 or not all(isinstance(v, str) for v in changes.values()):
        raise BadInputError(f"{where} must be a number of USD per {price.unit}, not {value!r}")
    return replace(price, **cast(Any, {**changes, "usd": usd}))

"""The JSON configuration of FMI programs: the backends and their constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from perseid.comm.cost_model import TRANSPORTS, Rates, TransportCosts
from perseid.errors import BadInputError
from perseid.rendezvous import LossTimeouts
from perseid.textfile import read_object

MILLISECOND = 1e-3
MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class FmiConfig:
    """The content of a configuration file, in our units."""

    rendezvous: str | None
    """``HOST:PORT`` of the Direct backend; None if it is not enabled."""
    bucket: str | None
    """URL for the messages of the S3 backend; None if it is not enabled."""
    region: str | None
    deadline: float
    """Seconds to wait for the other workers."""
    transports: tuple[TransportCosts, ...]
    """The enabled backends, with constants from the file or our defaults."""
    rates: Rates
    key: str | None = field(default=None, repr=False)
    """The job key, 64 hexadecimal digits; None for a server without keys."""

    @property
    def silence(self) -> float:
        """Seconds of silence after which a rank counts as lost; at least the file's own limit.

        A rank inside one long computation sends nothing, and the file's limit allows for that.
        """
        return max(LossTimeouts.silence, self.deadline)


def load(path: str | Path, faas_memory: int, rendezvous: str | None = None) -> FmiConfig:
    """Read a configuration file.

    Parameters
    ----------
    faas_memory
        Memory of one worker in MB, which determines the price of its time.
    rendezvous
        ``HOST:PORT`` of the server of this run, which replaces that of the file.

    Raises
    ------
    BadInputError
        The file cannot be read, or enables neither Direct nor S3.
    """
    document = read_object(path, "the FMI configuration")
    backends, model = _part(document, "backends"), _part(document, "model")
    # Other backends of FMI, such as Redis, have no counterpart here and are ignored.
    direct, s3 = _backend(backends, "Direct"), _backend(backends, "S3")
    if rendezvous is not None:
        host, _, port = rendezvous.rpartition(":")
        # The file may leave the backend disabled; its time limit still counts.
        told = _part(backends, "Direct")
        direct = {"max_timeout": told.get("max_timeout"), "host": host, "port": port}
    if not direct and not s3:
        raise BadInputError(f"the FMI configuration {path} must enable the backend Direct or S3")
    # FMI's time-outs are in milliseconds, and 0 means that none is set.
    waits = [_number(one, "max_timeout", 0.0) for one in (direct, s3) if one]
    return FmiConfig(
        rendezvous=_server(direct) if direct else None,
        bucket=_bucket(s3) if s3 else None,
        region=_text(s3, "s3_region") or None,
        deadline=max([*waits, 1.0]) * MILLISECOND if any(waits) else 60.0,
        transports=_transports(bool(direct), bool(s3), model),
        rates=_rates(model, faas_memory),
        # A key of ours, which FMI's own parser ignores.
        key=str(direct["key"]) if direct.get("key") else None,
    )


def _part(document: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = document.get(name, {})
    if not isinstance(found, dict):
        raise BadInputError(f"{name!r} in the FMI configuration must be an object")
    return found


def _backend(backends: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = _part(backends, name)
    needed = "host" if name == "Direct" else "bucket_name"
    if not _true(found.get("enabled", False)):
        return {}
    if not _text(found, needed):
        raise BadInputError(f"the backend {name} of the FMI configuration needs {needed!r}")
    return found


def _true(value: object) -> bool:
    # Accepted as JSON and as text; FMI's own parser takes 1 as well.
    return value is True or str(value).strip().lower() in ("true", "1")


def _server(direct: Mapping[str, object]) -> str:
    host, port = _text(direct, "host").strip(), direct.get("port")
    # An IPv6 address without brackets would swallow the port.
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    return f"{host}:{10000 if port is None else port}"


def _text(told: Mapping[str, object], name: str) -> str:
    value = told.get(name)
    if value is not None and not isinstance(value, str):
        raise BadInputError(f"{name!r} in the FMI configuration must be a text, not {value!r}")
    return value or ""


def _bucket(s3: Mapping[str, object]) -> str:
    # A path or URL is accepted in addition to a name, for tests and other stores.
    name = _text(s3, "bucket_name")
    return name if "://" in name or name.startswith("/") else f"s3://{name}"


def _transports(direct: bool, s3: bool, model: Mapping[str, object]) -> tuple[TransportCosts, ...]:
    known = {way.name: way for way in TRANSPORTS}
    transports = []
    for enabled, name, key in ((direct, "direct", "Direct"), (s3, "store", "S3")):
        told, way = _part(model, key), known[name]
        if enabled:
            transports.append(
                TransportCosts(
                    name,
                    _number(told, "overhead", way.latency / MILLISECOND) * MILLISECOND,
                    _number(told, "bandwidth", way.bandwidth / MEGABYTE) * MEGABYTE,
                    way.puts,
                    way.gets,
                    way.server,
                )
            )
    return tuple(transports)


def _rates(model: Mapping[str, object], faas_memory: int) -> Rates:
    s3, faas, direct = _part(model, "S3"), _part(model, "FaaS"), _part(model, "Direct")
    return Rates(
        worker_second=_number(faas, "gib_second_price", 0.0) * faas_memory / 1024,
        server_second=_number(direct, "server_price", 0.0) / 3600,
        # Either name is accepted for these prices.
        put=_number(s3, "transfer_price", 0.0) or _number(s3, "put_price", 0.0),
        get=_number(s3, "download_price", 0.0) or _number(s3, "get_price", 0.0),
    )


def _number(told: Mapping[str, object], name: str, otherwise: float) -> float:
    value = told.get(name)
    try:
        number = otherwise if value is None else float(str(value))
        # bool is a number to Python, but a mistake in this file.
        if 0 <= number < math.inf and not isinstance(value, bool):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadInputError(
        f"{name!r} in the FMI configuration must be a number of at least 0, not {value!r}"
    )

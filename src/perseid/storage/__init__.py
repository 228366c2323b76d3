"""Objects by URL, with one interface for disks, S3 and memory: see
``docs/reference/storage.md``."""

from perseid.storage.listing import Scan, Skipped, scan
from perseid.storage.location import Location
from perseid.storage.settings import use_aws
from perseid.storage.store import ObjectInfo, Storage

__all__ = ["Location", "ObjectInfo", "Scan", "Skipped", "Storage", "scan", "use_aws"]

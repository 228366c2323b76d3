"""perseid: a trained model over a survey of cutouts, as many small workers.

Everything that is documented here is the public interface, and stays compatible within a minor
version; what lies in sub-packages may change. Names are imported when they are first used, so that
``import perseid`` costs next to nothing.

Examples
--------
>>> import perseid
>>> run = perseid.run("partitions/", model="mine.onnx", world_size=8)  # doctest: +SKIP
>>> run.catalogue().to_astropy()  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perseid.lazy import lazy_names

if TYPE_CHECKING:
    from perseid import errors
    from perseid.api.calibrating import calibrate_model
    from perseid.api.catalogue import Catalogue
    from perseid.api.estimating import estimate
    from perseid.api.measurements import Measurements, measurements, measurements_on_aws
    from perseid.api.model import Model, load_model
    from perseid.api.planning import plan
    from perseid.api.run import Run
    from perseid.api.runs import open_run, resume, run
    from perseid.api.survey import Survey, open_survey
    from perseid.api.survey_info import SurveyInfo
    from perseid.api.sweeping import Sweep, sweep
    from perseid.api.worker_pace import calibrate
    from perseid.aws.engine import AwsEngine
    from perseid.comm import Communicator
    from perseid.engines.dask import DaskEngine
    from perseid.engines.local import LocalEngine
    from perseid.engines.slurm import SlurmEngine
    from perseid.pipeline.request import RunRequest
    from perseid.rendezvous import EmbeddedServer as RendezvousServer
    from perseid.storage import Storage
    from perseid.survey import Cutouts

__version__ = "0.2.0"

_PLACES = {
    "run": "perseid.api.runs",
    "resume": "perseid.api.runs",
    "open_run": "perseid.api.runs",
    "Run": "perseid.api.run",
    "plan": "perseid.api.planning",
    "calibrate": "perseid.api.worker_pace",
    "estimate": "perseid.api.estimating",
    "measurements": "perseid.api.measurements",
    "measurements_on_aws": "perseid.api.measurements",
    "Measurements": "perseid.api.measurements",
    "RunRequest": "perseid.pipeline.request",
    "Catalogue": "perseid.api.catalogue",
    "LocalEngine": "perseid.engines.local",
    "DaskEngine": "perseid.engines.dask",
    "SlurmEngine": "perseid.engines.slurm",
    "AwsEngine": "perseid.aws.engine",
    "open_survey": "perseid.api.survey",
    "calibrate_model": "perseid.api.calibrating",
    "Survey": "perseid.api.survey",
    "SurveyInfo": "perseid.api.survey_info",
    "Cutouts": "perseid.survey",
    "sweep": "perseid.api.sweeping",
    "Sweep": "perseid.api.sweeping",
    "load_model": "perseid.api.model",
    "Model": "perseid.api.model",
    "Communicator": "perseid.comm",
    "RendezvousServer": "perseid.rendezvous:EmbeddedServer",
    "Storage": "perseid.storage",
    "errors": "perseid.errors:",
}
"""Where each public name lives: module, and after a colon its name there if it is another (none:
the module itself)."""

__all__ = [
    "AwsEngine",
    "Catalogue",
    "Communicator",
    "Cutouts",
    "DaskEngine",
    "LocalEngine",
    "Measurements",
    "Model",
    "RendezvousServer",
    "Run",
    "RunRequest",
    "SlurmEngine",
    "Storage",
    "Survey",
    "SurveyInfo",
    "Sweep",
    "__version__",
    "calibrate",
    "calibrate_model",
    "errors",
    "estimate",
    "load_model",
    "measurements",
    "measurements_on_aws",
    "open_run",
    "open_survey",
    "plan",
    "resume",
    "run",
    "sweep",
]


__getattr__ = lazy_names(__name__, _PLACES)


def __dir__() -> list[str]:
    return sorted(__all__)

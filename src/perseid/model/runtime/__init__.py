"""Run a model in a worker with numpy and onnxruntime, without torch."""

from perseid.model.files import DEFAULT
from perseid.model.identity import int8_url
from perseid.model.runtime.answers import Prediction
from perseid.model.runtime.model_runtime import PRECISIONS, ModelRuntime
from perseid.model.runtime.predictor import Predictor
from perseid.model.runtime.processor import MICRO_BATCH

__all__ = [
    "DEFAULT",
    "MICRO_BATCH",
    "PRECISIONS",
    "ModelRuntime",
    "Prediction",
    "Predictor",
    "int8_url",
]

"""Running a model in a worker: numpy and onnxruntime, no torch."""

from perseid.model.runtime.model_runtime import (
    DEFAULT,
    MICRO_BATCH,
    PRECISIONS,
    ModelRuntime,
    Prediction,
    int8_url,
)

__all__ = ["DEFAULT", "MICRO_BATCH", "PRECISIONS", "ModelRuntime", "Prediction", "int8_url"]

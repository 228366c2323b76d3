"""Where runs work on AWS: the state machine and the functions of a stack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perseid import __version__
from perseid.aws import stack
from perseid.aws.session import Aws
from perseid.errors import BadInputError
from perseid.pipeline.schema import check_version

_ARCHITECTURES = {"x86_64": "x86", "arm64": "arm", "x86": "x86", "arm": "arm"}


@dataclass(frozen=True)
class StackResources:
    """The resources of a stack that an engine needs."""

    state_machine: str
    """ARN."""
    bucket: str
    """Default bucket of results."""
    worker: str
    initialize: str
    summarize: str
    """Names of the functions."""
    memory_mb: int
    """Memory of the worker."""
    architecture: str = "x86"
    """``x86`` or ``arm``."""
    tmp_mb: int = 512
    """/tmp of the worker."""
    retry_memory_mb: int = 0
    """Of the worker that tries a rank again whose memory did not suffice; 0: there is none."""
    version: str = __version__
    """Version of the functions' perseid; empty if the stack does not say."""

    @classmethod
    def of_stack(cls, aws: Aws, name: str = "perseid") -> StackResources:
        """From the outputs of a stack; raises `NotFoundError` if there is none."""
        return cls.of_outputs(stack.outputs(aws, name), name)

    @classmethod
    def of_outputs(cls, outputs: Mapping[str, str], name: str) -> StackResources:
        """From a stack's outputs; raises `BadInputError` if it is not one of ours."""
        try:
            return cls(
                state_machine=outputs["StateMachineArn"],
                bucket=outputs["Bucket"],
                worker=outputs["WorkerFunction"],
                initialize=outputs["InitializeFunction"],
                summarize=outputs["SummarizeFunction"],
                memory_mb=int(outputs["WorkerMemory"]),
                architecture=_ARCHITECTURES[outputs.get("Architecture", "x86_64")],
                tmp_mb=int(outputs.get("WorkerStorage", 512)),
                retry_memory_mb=int(outputs.get("RetryMemory", 0)),
                version=outputs.get("Version", ""),
            )
        except (KeyError, ValueError) as error:
            raise BadInputError(
                f"the stack {name} has no output {error}: deploy it again with `perseid aws deploy`"
            ) from error

    def check_version(self) -> None:
        """Raise `BadInputError` if the functions are of another minor version than this."""
        remedy = "deploy it again with this one (`perseid aws deploy`)"
        if not self.version:
            raise BadInputError(
                f"the stack was deployed by a version of perseid before 0.2, but this is perseid "
                f"{__version__}: {remedy}"
            )
        check_version(self.version, "the stack", remedy)

    def execution(self, name: str) -> str:
        """The ARN of an execution of the state machine."""
        return self.state_machine.replace(":stateMachine:", ":execution:") + f":{name}"

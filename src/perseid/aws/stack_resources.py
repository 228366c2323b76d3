"""The resources of a stack on which runs work: the state machine and the functions."""

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
    """ARN of the state machine."""
    bucket: str
    """Default bucket for results."""
    worker: str
    initialize: str
    summarize: str
    """Names of the functions."""
    memory_mb: int
    """Memory of the worker, in MB."""
    architecture: str = "x86"
    """Architecture of the functions, ``x86`` or ``arm``."""
    tmp_mb: int = 512
    """Size of the worker's /tmp, in MB."""
    retry_memory_mb: int = 0
    """Memory in MB of the worker that retries ranks that ran out of memory; 0 if there is none."""
    version: str = __version__
    """Version of perseid in the functions; empty if the stack does not say."""

    @classmethod
    def of_stack(cls, aws: Aws, name: str = "perseid") -> StackResources:
        """Read the resources from a stack's outputs; raises `NotFoundError` if there is no such
        stack."""
        return cls.of_outputs(stack.outputs(aws, name), name)

    @classmethod
    def of_outputs(cls, outputs: Mapping[str, str], name: str) -> StackResources:
        """Create it from a stack's outputs; raises `BadInputError` if the stack is not one of
        perseid's."""
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
        """Raise `BadInputError` if the functions have another minor version of perseid than this
        one."""
        remedy = "deploy it again with this one (`perseid aws deploy`)"
        if not self.version:
            raise BadInputError(
                f"the stack was deployed by a version of perseid before 0.2, but this is perseid "
                f"{__version__}: {remedy}"
            )
        check_version(self.version, "the stack", remedy)

    def execution(self, name: str) -> str:
        """ARN of an execution of the state machine, from the execution's name."""
        return self.state_machine.replace(":stateMachine:", ":execution:") + f":{name}"

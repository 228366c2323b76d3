"""Where moto has a gap that would keep our stack from running: small hooks on moto, not on us.

- Functions run: `moto_lambda`; they log where ``LoggingConfig`` says.
- CloudFormation makes the state machine in the backend that executes, with the definition that
  ``DefinitionS3Location`` and ``DefinitionSubstitutions`` say (moto ignores both). Children are
  STANDARD: moto's grammar has no word EXPRESS for them.
- A stack made or changed by a change set has outputs, and knows all its parameters, as text.
- A distributed map fails beyond its tolerated failures, which moto reads and never looks at again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import moto.stepfunctions.models as machines
from moto.awslambda.models import LambdaFunction
from moto.cloudformation.models import CloudFormationBackend, Stack
from moto.core.config import default_user_config
from moto.s3.models import s3_backends
from moto.stepfunctions.parser import models as executing
from moto.stepfunctions.parser.api import HistoryEventType, MapRunFailedEventDetails
from moto.stepfunctions.parser.asl.component.common.error_name.failure_event import (
    FailureEvent,
    FailureEventException,
)
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name import (
    StatesErrorName,
)
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name_type import (
    StatesErrorNameType,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_map.iteration.itemprocessor import (
    distributed_item_processor_worker as maps,
)
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails
from moto_lambda import Functions

CHILDREN = '"ExecutionType": "%s"'
EXCEEDED = StatesErrorNameType.StatesExceedToleratedFailureThreshold


def install(endpoint: str, interpreter: Path, at_once: int) -> None:
    """Put all hooks into this process' moto."""
    default_user_config["stepfunctions"] = {"execute_state_machine": True}
    functions = Functions(interpreter, endpoint, at_once)
    LambdaFunction.invoke = lambda *given: functions.invoke(*given)
    LambdaFunction.__init__ = _with_group_of_spec(LambdaFunction.__init__)
    method = LambdaFunction.create_from_cloudformation_json.__func__
    LambdaFunction.create_from_cloudformation_json = classmethod(_with_log_group(method))
    machines.stepfunctions_backends = executing.stepfunctions_parser_backends
    for name in ("create_from_cloudformation_json", "update_from_cloudformation_json"):
        method = getattr(machines.StateMachine, name).__func__
        setattr(machines.StateMachine, name, classmethod(_with_definition(method)))
    CloudFormationBackend.execute_change_set = _with_outputs(
        CloudFormationBackend.execute_change_set
    )
    Stack.parameter_list = property(_parameters)
    Stack.has_parameters = _has_parameters
    worker = maps.DistributedItemProcessorWorker
    worker._eval_job = _tolerating(worker._eval_job)


def _with_definition(method: Callable[..., Any]) -> Callable[..., Any]:
    """CloudFormation on moto knows ``DefinitionString`` only."""

    def made(cls: Any, *given: Any, **named: Any) -> Any:
        template = named.get("cloudformation_json") or next(g for g in given if type(g) is dict)
        properties = template["Properties"]
        place = properties.get("DefinitionS3Location")
        if place:
            stored = s3_backends[named["account_id"] if "account_id" in named else given[-2]]
            [store] = [entry for name, entry in stored.items() if name == "aws"]
            text = store.get_object(place["Bucket"], place["Key"]).value.decode()
            for name, value in properties.get("DefinitionSubstitutions", {}).items():
                text = text.replace(f"${{{name}}}", value)
            assert not re.search(r"\$\{\w+\}", text)
            properties["DefinitionString"] = text.replace(
                CHILDREN % "EXPRESS", CHILDREN % "STANDARD"
            )
        return method(cls, *given, **named)

    return made


def _with_group_of_spec(begin: Callable[..., None]) -> Callable[..., None]:
    def begun(self: Any, **given: Any) -> None:
        begin(self, **given)
        group = given["spec"].get("LoggingConfig", {}).get("LogGroup")
        if group:
            self.logs_group_name = group

    return begun


def _with_log_group(method: Callable[..., Any]) -> Callable[..., Any]:
    """moto's functions all log into the group of their own name."""

    def made(cls: Any, *given: Any, **named: Any) -> Any:
        function = method(cls, *given, **named)
        template = named.get("cloudformation_json") or next(g for g in given if type(g) is dict)
        group = template["Properties"].get("LoggingConfig", {}).get("LogGroup")
        if group:
            function.logs_group_name = group
        return function

    return made


def _with_outputs(execute: Callable[..., Any]) -> Callable[..., Any]:
    def executed(self: Any, change_set_name: str, stack_name: str | None = None) -> None:
        execute(self, change_set_name, stack_name)
        done = self.describe_change_set(change_set_name)
        stack = self.stacks[done.stack_id]
        stack.template_dict = done.template_dict
        stack.output_map = stack._create_output_map()
        stack.parameters = {p["ParameterKey"]: p["ParameterValue"] for p in _parameters(stack)}

    return executed


def _has_parameters(stack: Any, given: Mapping[str, str]) -> bool:
    """A parameter that is not given has the template's default; moto compares what was given."""
    known = stack.template_dict["Parameters"]
    defaults = {k: str(entry["Default"]) for k, entry in known.items() if "Default" in entry}
    return {**defaults, **given} == stack.parameters


def _parameters(stack: Any) -> list[dict[str, str]]:
    """moto shows lists as Python's repr."""
    resolved = stack.resource_map.resolved_parameters
    return [
        {"ParameterKey": k, "ParameterValue": ",".join(v) if isinstance(v, list) else str(v)}
        for k, v in resolved.items()
    ]


def _tolerating(one_item: Callable[..., Any]) -> Callable[..., Any]:
    """More failed items than are tolerated end the map with the name that AWS documents.

    https://docs.aws.amazon.com/step-functions/latest/dg/state-map-distributed.html#maprun-fail-threshold
    """
    cause = "The specified tolerated failure threshold was exceeded"

    def eval_job(self: Any, env: Any, job: Any) -> None:
        one_item(self, env, job)
        failed = self._map_run_record.item_counter.failed.get()
        if 100 * failed > self._map_run_record.tolerated_failure_percentage * _items(self):
            said = MapRunFailedEventDetails(error=EXCEEDED.to_name(), cause=cause)
            job.job_output = FailureEventException(
                FailureEvent(
                    env=env,
                    error_name=StatesErrorName(typ=EXCEEDED),
                    event_type=HistoryEventType.MapRunFailed,
                    event_details=EventDetails(mapRunFailedEventDetails=said),
                )
            )

    return eval_job


def _items(worker: Any) -> int:
    return int(worker._job_pool._jobs_number)

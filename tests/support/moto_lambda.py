"""Lambda for moto: its own needs Docker, this one starts the bootstrap of AWS' images instead.

A hook on the double, not on us: where moto would start a container, the function's own zip is
unpacked and its handler runs under awslambdaric in a process, one event at a time, warm or cold,
with a deadline, an exit status and the log lines of Lambda. More events at once than the account
may run are refused as Lambda refuses them, and a process that takes more memory than its function
has is killed. Roles are not enforced.
"""

from __future__ import annotations

import io
import json
import signal
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lambda_runtime import Answer, Environment, environment
from moto.awslambda.exceptions import LambdaClientError

INIT_SECONDS = 60.0
"""Longest wait for an environment; Lambda gives 10 s, on machines with more to give."""

TAIL_SECONDS = 0.5
"""Between two looks at what an invocation has written."""
LOOK_SECONDS = 0.02
"""Between two looks at its memory."""


class TooMany(LambdaClientError):
    """As Lambda says it: https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html ."""

    code = 429

    def __init__(self) -> None:
        super().__init__("TooManyRequestsException", "Rate Exceeded.")


@dataclass
class Running:
    """An execution environment with its log stream."""

    resources: ExitStack
    environment: Environment
    stream: str
    init_ms: float | None
    """Until its next REPORT line has said it."""
    read: int = 0
    """Bytes of its output that are in the log."""


@dataclass
class Functions:
    """What runs the functions of one moto."""

    python: Path
    endpoint: str
    at_once: int
    """Concurrency of the account; 0: no limit."""
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="moto-lambda-")))
    warm: dict[str, list[Running]] = field(default_factory=dict)
    busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def invoke(self, function: Any, body: str, headers: Any, answer: dict[str, str]) -> bytes:
        """Stands where moto's ``LambdaFunction.invoke`` does."""
        event = json.loads(body) if body else {}
        if headers.get("x-amz-invocation-type", "RequestResponse") == "Event":
            threading.Thread(target=self.run, args=(function, event), daemon=True).start()
            return b""
        done = self.run(function, event)
        if done.kind != "response":
            answer["x-amz-function-error"] = "Unhandled"
        return json.dumps(done.body).encode()

    def run(self, function: Any, event: Any) -> Answer:
        """One invocation in a free environment or in a new one."""
        with self._one_more():
            settings = (function.function_arn, function.code_sha_256, function.handler)
            key = str((*settings, sorted(function.environment_vars.items()), function.timeout))
            with self.lock:
                idle = self.warm.setdefault(key, [])
                running = idle.pop() if idle else None
            running = running or self._start(function)
            done = _Invocation(function, running).run(event)
            if done.kind in ("response", "error"):
                with self.lock:
                    self.warm[key].append(running)
            else:
                running.resources.close()
            return done

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        with self.lock:
            if self.at_once and self.busy >= self.at_once:
                raise TooMany
            self.busy += 1
        try:
            yield
        finally:
            with self.lock:
                self.busy -= 1

    def _start(self, function: Any) -> Running:
        began, resources = time.monotonic(), ExitStack()
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        given = {name: str(value) for name, value in function.environment_vars.items()}
        env = {
            **given, "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": function.region, "AWS_DEFAULT_REGION": function.region,
            "AWS_LAMBDA_FUNCTION_NAME": function.function_name,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_size),
        }  # fmt: skip
        started = resources.enter_context(
            environment(self.python, self._code(function), function.handler, folder, env)
        )
        while not started.ready.wait(0.02) and started.process.poll() is None:
            if time.monotonic() > began + INIT_SECONDS:
                break
        stream = f"{time.strftime('%Y/%m/%d')}/[$LATEST]{uuid.uuid4().hex}"
        function.logs_backend.ensure_log_group(function.logs_group_name)
        function.logs_backend.create_log_stream(function.logs_group_name, stream)
        return Running(resources, started, stream, 1e3 * (time.monotonic() - began))

    def _code(self, function: Any) -> Path:
        """The zip, unpacked once."""
        place = self.folder / function.code_digest.replace("/", "-").replace(":", "-")
        with self.lock:
            if not place.is_dir():
                with zipfile.ZipFile(io.BytesIO(function.code_bytes)) as archive:
                    archive.extractall(place)
        return place


class _Invocation:
    """One event in one environment, and the lines about it."""

    def __init__(self, function: Any, running: Running) -> None:
        self.function, self.running = function, running
        self.request = str(uuid.uuid4())
        self.over = threading.Event()
        self.starved = False

    def run(self, event: Any) -> Answer:
        began, clock = time.time(), time.monotonic()
        limit = float(self.function.timeout)
        start = f"START RequestId: {self.request} Version: $LATEST"
        self._log([start], began)
        tail = threading.Thread(target=self._tail, daemon=True)
        tail.start()
        limited = threading.Thread(target=self._limit_memory, daemon=True)
        limited.start()
        try:
            done = self.running.environment.invoke(event, limit, limit, self.request)
        except TimeoutError:
            done = Answer("timeout")
        self.over.set()
        tail.join()
        limited.join()
        seconds = min(time.monotonic() - clock, limit)
        self._log([*self._output(), *self._end(done, seconds)], time.time())
        return self._told(done)

    def _tail(self) -> None:
        """Lines of a long invocation are seen while it goes on."""
        while not self.over.wait(TAIL_SECONDS):
            self._log(self._output(), time.time())

    def _limit_memory(self) -> None:
        """As the kernel does on Lambda."""
        process = self.running.environment.process
        while not self.over.wait(LOOK_SECONDS):
            if _megabytes(process.pid, "VmRSS") > self.function.memory_size:
                self.starved = True
                process.kill()
                return

    def _told(self, done: Answer) -> Answer:
        """What the caller gets for an environment that is gone.

        Names as in https://docs.aws.amazon.com/lambda/latest/dg/troubleshooting-invocation.html .
        """
        who = f"RequestId: {self.request} Error: "
        if done.kind == "timeout":
            text = f"{who}Task timed out after {float(self.function.timeout):.2f} seconds"
            return Answer("timeout", {"errorType": "Sandbox.Timedout", "errorMessage": text})
        if done.kind == "ended":
            text = f"{who}Runtime exited with error: {_status(done.body)}"
            return Answer("ended", {"errorType": self._kind(done), "errorMessage": text})
        return done

    def _end(self, done: Answer, seconds: float) -> list[str]:
        lines, status = [], ""
        if done.kind == "timeout":
            now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
            lines = [f"{now}.000Z {self.request} Task timed out after {seconds:.2f} seconds"]
            status = "\tStatus: timeout"
        elif done.kind != "response":
            kind = self._kind(done)
            status = f"\tStatus: error\tError Type: {kind}"
        if done.kind == "ended":
            lines = [f"RequestId: {self.request} Error: Runtime exited with error: "
                     f"{_status(done.body)}", kind]  # fmt: skip
        return [f"END RequestId: {self.request}", self._report(seconds * 1e3, status), *lines]

    def _report(self, milliseconds: float, status: str) -> str:
        """Since August 2025 the init phase is billed, too."""
        init, self.running.init_ms = self.running.init_ms, None
        billed = int(milliseconds + (init or 0)) + 1
        first = "" if init is None else f"\tInit Duration: {init:.2f} ms"
        return (
            f"REPORT RequestId: {self.request}\tDuration: {milliseconds:.2f} ms\t"
            f"Billed Duration: {billed} ms\tMemory Size: {self.function.memory_size} MB\t"
            f"Max Memory Used: {self._memory()} MB{first}{status}"
        )

    def _memory(self) -> int:
        """The most that the process had, MB; the limit where it is gone."""
        found = _megabytes(self.running.environment.process.pid, "VmHWM")
        return found or int(self.function.memory_size)

    def _kind(self, done: Answer) -> str:
        """Of the error, as Lambda names it."""
        return "Runtime.OutOfMemory" if self.starved else done.error_type or "Runtime.ExitError"

    def _output(self) -> list[str]:
        """What the process has written since the last time."""
        text = self.running.environment.log.read_bytes()[self.running.read :]
        self.running.read += len(text)
        return text.decode(errors="replace").splitlines()

    def _log(self, lines: list[str], when: float) -> None:
        if not lines:
            return
        events = [{"timestamp": int(when * 1e3), "message": f"{line}\n"} for line in lines]
        self.function.logs_backend.put_log_events(
            self.function.logs_group_name, self.running.stream, events
        )


def _status(code: int) -> str:
    if code == -signal.SIGKILL:
        return "signal: killed"
    return f"signal: {-code}" if code < 0 else f"exit status {code}"


def _megabytes(pid: int, what: str) -> int:
    """A line of the process' status; 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        return int(text.partition(f"{what}:")[2].split()[0]) // 1024
    except (OSError, IndexError):
        return 0

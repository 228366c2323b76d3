"""The server process: command line, HTTP port, TCPunch clients, ping, keys, draining."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from rendezvous_processes import (
    ServerProcess,
    WorkerProcess,
    free_ports,
    read_address,
    tcpunch_connect,
    tcpunch_pair,
)
from waiting import eventually, in_parallel

import perseid
from perseid.cli import main
from perseid.rendezvous import Client
from perseid.rendezvous.protocol import tcpunch as t


@pytest.fixture(scope="module")
def server():
    with ServerProcess() as running:
        yield running


# --- the HTTP port ----------------------------------------------------------------------------


def test_health_readiness_and_metrics(server):
    assert server.get("/healthz") == (200, "ok\n")
    assert server.get("/health") == (200, "ok\n")
    assert server.get("/readyz") == (200, "ready\n")
    assert server.get("/other")[0] == 404
    status, text = server.get("/metrics")
    assert status == 200
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert "perseid_rendezvous_registrations_total" in names
    assert "perseid_rendezvous_ranks" in names
    for line in text.splitlines():
        if not line.startswith("#"):
            float(line.split()[1])


def test_the_metrics_follow_what_happens(server):
    before = server.metric("registrations_total")
    with Client.register(server.address, "metrics", 0, 2):
        assert server.metric("registrations_total") == before + 1
        assert server.metric("ranks") == 1
    eventually(lambda: not server.metric("ranks"))
    assert server.metric("left_total") >= 1


@pytest.mark.parametrize(
    "request_line", [b"POST / HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n", b"\x16\n\n"]
)
def test_what_is_no_get_is_answered_with_400(server, request_line):
    with socket.create_connection(("127.0.0.1", server.http_port), 5) as sock:
        sock.sendall(request_line)
        assert sock.recv(100).startswith(b"HTTP/1.1 400")


# --- TCPunch ----------------------------------------------------------------------------------


def test_a_real_version_1_program_pairs_and_talks(server):
    name = "fmi_pair0_1"
    one, two = in_parallel([lambda: tcpunch_pair(name, server.port)] * 2)
    one.sendall(b"first byte is the user's")
    assert two.recv(100) == b"first byte is the user's"
    one.close()
    two.close()


def test_many_version_1_pairs_at_once_lose_none(server):
    before = server.metric("tcpunch_pairs_total")
    names = [f"many{number}" for number in range(40)]
    calls = [lambda name=name: tcpunch_pair(name, server.port) for name in names * 2]
    socks = in_parallel(calls)
    for sock in socks:
        sock.close()
    assert server.metric("tcpunch_pairs_total") == before + 40


def test_version_1_on_the_wire(server):
    with tcpunch_connect(server.port) as one, tcpunch_connect(server.port) as two:
        one.sendall(b"wire")
        assert read_address(one) == one.getsockname()
        two.sendall(b"wire")
        assert read_address(two) == two.getsockname()
        assert read_address(two) == one.getsockname()
        assert read_address(one) == two.getsockname()
        assert one.recv(1) == b""
        assert two.recv(1) == b""


def test_a_name_in_two_segments_is_one_name(server):
    took = t.GRACE
    while took > t.GRACE / 2:  # a busy machine may pause between the two: then once more
        with tcpunch_connect(server.port) as one, tcpunch_connect(server.port) as two:
            began = time.monotonic()
            one.sendall(b"seg")
            time.sleep(0.002)
            one.sendall(b"ment")
            took = time.monotonic() - began
            if took <= t.GRACE / 2:
                two.sendall(b"segment")
                read_address(one)
                read_address(two)
                assert read_address(one) == two.getsockname()


def test_a_name_of_100_bytes(server):
    with tcpunch_connect(server.port) as one, tcpunch_connect(server.port) as two:
        for sock in (one, two):
            sock.sendall(b"n" * 100)
        for sock in (one, two):
            read_address(sock)
        assert read_address(one) == two.getsockname()


def v2_request(name: str, token: str = "") -> bytes:
    return name.encode().ljust(100, b"\0") + token.encode().ljust(37, b"\0") + bytes(4)


def v2_reply(sock):
    data = b""
    while len(data) < t.REPLY_BYTES:
        part = sock.recv(t.REPLY_BYTES - len(data))
        if not part:
            raise EOFError
        data += part
    return t.unpack_v2(data)


def test_version_2_waits_pairs_and_ends(server):
    with tcpunch_connect(server.port) as one, tcpunch_connect(server.port) as two:
        one.sendall(v2_request("second"))
        status, own, peer, token = v2_reply(one)
        assert (status, tuple(own)) == (t.ReplyStatus.WAITING, one.getsockname())
        assert (peer.host, peer.port) == ("0.0.0.0", 0)
        assert uuid.UUID(token)
        two.sendall(v2_request("second"))
        status, own, peer, other = v2_reply(two)
        assert status is t.ReplyStatus.PAIRED
        assert (tuple(own), tuple(peer)) == (two.getsockname(), one.getsockname())
        assert other != token
        status, _, peer, again = v2_reply(one)
        assert (status, tuple(peer), again) == (t.ReplyStatus.PAIRED, two.getsockname(), token)
        assert one.recv(1) == b""
        assert two.recv(1) == b""


def test_version_2_in_pieces(server):
    request = v2_request("pieces")
    with tcpunch_connect(server.port) as one:
        for start in range(0, len(request), 20):
            one.sendall(request[start : start + 20])
            time.sleep(0.002)
        assert v2_reply(one)[0] is t.ReplyStatus.WAITING


def test_a_retry_with_its_token_does_not_pair_with_its_ghost(server):
    with tcpunch_connect(server.port) as one, tcpunch_connect(server.port) as again:
        one.sendall(v2_request("ghost"))
        token = v2_reply(one)[3]
        again.sendall(v2_request("ghost", token))
        assert v2_reply(again)[0] is t.ReplyStatus.WAITING
        assert one.recv(1) == b""
        with tcpunch_connect(server.port) as other:
            other.sendall(v2_request("ghost"))
            assert tuple(v2_reply(other)[2]) == again.getsockname()


@pytest.mark.parametrize("request_bytes", [v2_request(""), v2_request("x", "not-a-token")])
def test_malformed_version_2_requests_get_an_error(server, request_bytes):
    with tcpunch_connect(server.port) as sock:
        sock.sendall(request_bytes)
        assert v2_reply(sock)[0] is t.ReplyStatus.ERROR
        assert sock.recv(1) == b""


def test_waiting_ends_at_the_servers_limit():
    with ServerProcess("--open", "--wait", "0.3") as server:
        one, two = tcpunch_connect(server.port), tcpunch_connect(server.port)
        one.sendall(b"alone")
        two.sendall(v2_request("alone"))
        read_address(one)
        assert v2_reply(two)[0] is t.ReplyStatus.WAITING
        assert one.recv(1) == b""
        assert v2_reply(two)[0] is t.ReplyStatus.TIMEOUT
        assert two.recv(1) == b""
        one.close()
        two.close()


def test_without_tcpunch_its_clients_are_closed():
    with ServerProcess("--open", "--no-tcpunch") as server, tcpunch_connect(server.port) as sock:
        sock.sendall(b"name")
        assert sock.recv(8) == b""


# --- command line -----------------------------------------------------------------------------


def test_serving_needs_keys_or_the_word_open():
    command = [sys.executable, "-m", "perseid.rendezvous", "serve", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "--key-file --open" in done.stderr


def test_a_port_in_use_is_one_sentence(server):
    command = [sys.executable, "-m", "perseid.rendezvous", "serve", "--open"]
    command += ["--host", "127.0.0.1", "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {server.port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_server_imports_nothing_but_the_standard_library():
    program = (
        "import sys, perseid.rendezvous, perseid.rendezvous.server.command_line; "
        "names = {name.partition('.')[0] for name in sys.modules}; "
        "print(sorted(names - set(sys.stdlib_module_names) - {'perseid', '__main__'}))"
    )
    command = [sys.executable, "-S", "-c", program]
    source = str(Path(perseid.__file__).parents[1])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, env={"PYTHONPATH": source}
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_files_in_the_container_are_enough(tmp_path):
    """What the Dockerfile copies, and a Python without site-packages, give a running server."""
    root = Path(__file__).parents[2]
    for line in (root / "docker/rendezvous.Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            *sources, target = line.split()[1:]
            for source in sources:
                if (root / source).is_dir():
                    shutil.copytree(root / source, tmp_path / target)
                else:
                    (tmp_path / target).mkdir(exist_ok=True)
                    shutil.copy(root / source, tmp_path / target)
    port, http_port = free_ports(2)
    command = [sys.executable, "-S", "-m", "perseid.rendezvous", "serve", "--open", "--drain", "0"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--http-port", str(http_port)]
    with subprocess.Popen(
        command, cwd=tmp_path, env={}, stdout=subprocess.PIPE, text=True
    ) as server:
        assert "listening" in server.stdout.readline()
        with Client.register(f"127.0.0.1:{port}", "job", 0, 1) as client:
            client.wait_complete(5)
        server.terminate()
        assert server.wait(10) == 0


def test_keys_from_the_command_line_open_the_door(tmp_path, capsys):
    secret = tmp_path / "secret"
    secret.write_text("f" * 64 + "\n")
    assert main(["rendezvous", "key", "--key-file", str(secret), "job"]) == 0
    key = bytes.fromhex(capsys.readouterr().out.strip())
    with (
        ServerProcess("--key-file", str(secret)) as server,
        Client.register(server.address, "job", 0, 1, key=key) as client,
    ):
        client.wait_complete(5)


def test_ping_tells_what_it_found(server, capsys):
    assert main(["ping", f"localhost:{server.port}"]) == 0
    out = capsys.readouterr().out
    assert "localhost -> " in out
    assert "127.0.0.1" in out
    assert "none: the server sees this machine's own address" in out
    assert " ms" in out


def test_ping_looks_at_both_families(capsys, monkeypatch):
    both = [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]
    monkeypatch.setattr("perseid.rendezvous.client.connectivity.resolve", lambda _: both)
    monkeypatch.setattr("perseid.rendezvous.net.dialing.resolve", lambda _: both)
    with ServerProcess("--open", host="") as server:
        assert main(["ping", f"rendezvous.example:{server.port}"]) == 0
    out = capsys.readouterr().out
    assert "rendezvous.example -> ::1, 127.0.0.1" in out
    assert "seen as (IPv6)  [::1]:" in out
    assert "seen as (IPv4)  127.0.0.1:" in out
    assert out.count("none: the server sees this machine's own address") == 2


def test_ping_says_what_to_mend(server, capsys):
    (nobody,) = free_ports(1)
    assert main(["ping", "--timeout", "0.5", f"127.0.0.1:{nobody}"]) == 1
    assert "is it running" in capsys.readouterr().err
    assert main(["ping", "--timeout", "1", f"127.0.0.1:{server.http_port}"]) == 1
    assert "is the port right" in capsys.readouterr().err
    assert main(["ping", "no-such-name.invalid"]) == 1
    assert "is not known" in capsys.readouterr().err
    for seconds in ("0", "-1", "nan", "inf"):
        try:
            status = main(["ping", "--timeout", seconds, server.address])
        except SystemExit as error:  # the parser's own refusal
            status = error.code
        assert status == 2
        said = capsys.readouterr().err
        assert said.startswith("perseid: --timeout")
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rate", "nan"), "cannot be negative"),
        (("--drain", "-1"), "cannot be negative"),
        (("--wait", "0"), "must be above 0"),
        (("--link-timeout", "nan"), "must be above 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(words, said, capsys):
    assert main(["rendezvous", "serve", "--open", "--port", "0", *words]) == 2
    assert said in capsys.readouterr().err


def test_logs_are_json_and_hold_no_bytes_of_clients():
    with ServerProcess() as server:
        with tcpunch_connect(server.port) as sock:
            sock.sendall(b"\xff\xfesecret-bytes")
            assert sock.recv(1) == b""
        server.signal(signal.SIGTERM)
        assert server.finish() == 0
    events = [line["event"] for line in server.log]
    assert events[0] == "listening"
    assert "malformed" in events
    assert events[-1] == "drained"
    assert "secret-bytes" not in json.dumps(server.log)
    assert server.log[0]["max_clients"] > 0


# --- draining ---------------------------------------------------------------------------------


def test_a_drain_lets_an_assembling_job_finish_and_refuses_new_ones():
    with ServerProcess("--open", "--drain", "60") as server:
        first = Client.register(server.address, "job", 0, 2)
        server.signal(signal.SIGTERM)
        eventually(lambda: server.get("/readyz")[0] == 503)
        with pytest.raises(Exception, match="shutting down"):
            Client.register(server.address, "another", 0, 1)
        assert server.process.poll() is None
        second = Client.register(server.address, "job", 1, 2)
        first.wait_complete(5)
        link, other = first.connect([1], 5)[1], second.connect([0], 5)[0]
        assert server.finish() == 0
        link.sock.sendall(b"links outlive the server")
        assert other.sock.recv(100) == b"links outlive the server"
        first.close()
        second.close()


def test_a_drain_pairs_those_who_wait_and_takes_no_new_tcpunch_clients():
    with ServerProcess("--open", "--drain", "60") as server:
        with tcpunch_connect(server.port) as waiter:
            waiter.sendall(b"begun")
            mine = read_address(waiter)
            server.signal(signal.SIGTERM)
            eventually(lambda: server.get("/readyz")[0] == 503)
            with tcpunch_connect(server.port) as late:
                late.sendall(b"another")
                assert late.recv(8) == b""
            with tcpunch_connect(server.port) as partner:
                partner.sendall(b"begun")
                own = read_address(partner)
                assert read_address(partner) == mine
            assert read_address(waiter) == own
        assert server.finish() == 0


def test_a_drain_ends_at_its_limit():
    with ServerProcess("--open", "--drain", "0.3") as server:
        client = Client.register(server.address, "job", 0, 2)
        server.signal(signal.SIGTERM)
        assert server.finish() == 0
        client.close()


def test_workers_in_other_processes(server):
    ones = [WorkerProcess().ready() for _ in range(3)]
    try:
        for rank, one in enumerate(ones):
            one.ask("register", server=server.address, job="procs", rank=rank, world=3)
        assert all("port" in one.answer() for one in ones)
        for one in ones:
            one.ask("connect", ranks=[0, 1, 2], deadline=10)
        assert all(set(one.answer()["ways"].values()) == {"direct"} for one in ones)
        for one in ones:
            one.ask("talk")
        for rank, one in enumerate(ones):
            heard = one.answer()["heard"]
            assert heard == {str(other): other for other in range(3) if other != rank}
    finally:
        for one in ones:
            one.stop()

"""Coverage-guided fuzzing of every parser of the rendezvous; run by a slow test.

    python fuzz_rendezvous.py -max_total_time=600 -rss_limit_mb=512 -timeout=5

Each parser may raise its own error and nothing else; libFuzzer watches time and memory.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports():
    from perseid.rendezvous import protocol
    from perseid.rendezvous.protocol import handshake, tcpunch
    from perseid.rendezvous.protocol.wire import MAX_CLIENT_FRAME, FrameReader, ProtocolError
    from perseid.rendezvous.server import http

ME = handshake.Identity("job", 0, 2, bytes(8))


def frames(table, data: bytes) -> None:
    """Frames in two pieces; what is read packs to the same bytes, but for unknown codes."""
    reader, cut = FrameReader(MAX_CLIENT_FRAME), len(data) // 2
    for piece in (data[:cut], data[cut:]):
        for kind, body in reader.feed(piece):
            frame = protocol.decode(table, kind, body)
            again = type(frame).unpack(frame.pack()[5:])
            assert again == frame, (frame, again)
    assert len(reader.unfinished) <= MAX_CLIENT_FRAME + 5


def one(data: bytes) -> None:
    which, rest = data[:1], data[1:]
    try:
        match which:
            case b"\x00":
                frames(protocol.FROM_CLIENT, rest)
            case b"\x01":
                frames(protocol.FROM_SERVER, rest)
            case b"\x02":
                version = tcpunch.request_version(rest)
                if version is not None:
                    (tcpunch.parse_v2 if version == 2 else tcpunch.parse_v1)(rest)
            case b"\x03":
                handshake.Handshake(ME, b"k" * 32).feed(rest[:96].ljust(96, b"\0"))
            case _:
                http.request_path(rest)
    except (ProtocolError, tcpunch.TcpunchError, handshake.HandshakeError):
        pass
    except ValueError:
        if which in (b"\x00", b"\x01", b"\x02", b"\x03"):
            raise


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()

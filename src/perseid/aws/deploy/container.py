"""The program of the rendezvous' container, passed as text in its command, so that any image with
Python can run it.

The program fetches the server from the stack's bucket unless the image contains perseid; nothing is
written to disk. It uses only the standard library, and it is short because a template's parameter
holds at most 4,096 characters.
"""

import datetime
import hashlib
import hmac
import importlib.util
import json
import os
import runpy
import sys
import urllib.parse
import urllib.request

E = os.environ


def credentials() -> tuple[str, str, str | None]:
    """Credentials of the task's role, from the address that ECS provides or from the
    environment."""
    url = E.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    if not url and "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" in E:
        url = "http://169.254.170.2" + E["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]
    if not url:
        return E["AWS_ACCESS_KEY_ID"], E["AWS_SECRET_ACCESS_KEY"], E.get("AWS_SESSION_TOKEN")
    got = json.load(urllib.request.urlopen(url, timeout=10))
    return got["AccessKeyId"], got["SecretAccessKey"], got.get("Token")


def fetch(bucket: str, name: str) -> bytes:
    """Fetch an object from S3, with a request signed by Signature Version 4."""
    region, (access, secret, token) = E["AWS_REGION"], credentials()
    base = E.get("AWS_ENDPOINT_URL_S3") or f"https://s3.{region}.amazonaws.com"
    url = urllib.parse.urlsplit(base + urllib.parse.quote(f"/{bucket}/{name}"))
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    empty = hashlib.sha256(b"").hexdigest()
    head = {"host": url.netloc, "x-amz-content-sha256": empty, "x-amz-date": now}
    if token:
        head["x-amz-security-token"] = token
    names, lines = ";".join(sorted(head)), "".join(f"{k}:{head[k]}\n" for k in sorted(head))
    asked = hashlib.sha256(f"GET\n{url.path}\n\n{lines}\n{names}\n{empty}".encode()).hexdigest()
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    key = ("AWS4" + secret).encode()
    for part in [*scope.split("/"), f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{asked}"]:
        key = hmac.new(key, part.encode(), "sha256").digest()
    head["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, "
        f"Signature={key.hex()}"
    )
    request = urllib.request.Request(url.geturl(), headers=head)
    return bytes(urllib.request.urlopen(request, timeout=60).read())


def in_memory(data: bytes) -> str:
    """Path of a file that exists only in memory."""
    number = os.memfd_create("perseid")
    with open(os.dup(number), "wb") as file:
        file.write(data)
    return f"/proc/self/fd/{number}"


def main() -> None:
    """Fetch the server's package and run it in this process."""
    if importlib.util.find_spec("perseid") is None:
        sys.path.insert(0, in_memory(fetch(E["CODE_BUCKET"], E["CODE_KEY"])))
    key = in_memory(E.pop("RENDEZVOUS_SECRET").encode() + b"\n")
    sys.argv = ["rendezvous", "serve", "--key-file", key, "--log", "json", *sys.argv[1:]]
    runpy.run_module("perseid.rendezvous", run_name="__main__")


if __name__ == "__main__":
    main()

"""A second user's script of the message-passing kind: a pipeline from rank to rank, and a scan.

Copied into a bucket by the tests and run there by script mode; it knows nothing of perseid. Its
configuration is not beside it: it writes one, as those do that get their server from the payload.
"""

import json
import os
import tempfile
from pathlib import Path

import boto3
import fmi

S3 = boto3.client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
NUMBER, REAL = fmi.types(fmi.datatypes.int), fmi.types(fmi.datatypes.double)


def configuration(payload: dict) -> str:
    host, _, port = payload["rendezvous_endpoint"].partition(":")
    direct = {"enabled": "true", "host": host, "port": int(port), "max_timeout": "900000"}
    document = {"backends": {"Direct": direct, "Redis": {"enabled": "false"}}, "model": {}}
    path = Path(tempfile.mkdtemp(), "config.json")
    path.write_text(json.dumps(document))
    return str(path)


def main() -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    bucket = os.environ["S3_BUCKET"]
    payload = json.loads(S3.get_object(Bucket=bucket, Key="payload.json")["Body"].read())
    key = payload["data_map"][str(rank)]
    comm = fmi.Communicator(rank, size, configuration(payload), "statistics")
    whole = fmi.types(fmi.datatypes.double_list, size)
    weight = comm.scatter([0.5 * peer for peer in range(size)] if rank == 0 else None, 0, whole)
    scale = comm.bcast(2.0 if rank == size - 1 else None, size - 1, REAL)
    passed = [float(rank)]
    if rank > 0:
        passed = comm.recv(rank - 1, fmi.types(fmi.datatypes.double_list, rank)) + passed
    if rank < size - 1:
        comm.send(passed, rank + 1, fmi.types(fmi.datatypes.double_list, rank + 1))
    before = comm.scan(rank + 1, fmi.func(fmi.op.custom, lambda a, b: 10 * a + b, False, False),
                       NUMBER)  # fmt: skip
    comm.barrier()
    result = {
        "total_cpu_time (seconds)": 1.0, "sample_persec": 10.0, "throughput_bps": 1e6,
        "num_batches": 1, "data_path": key, "result_path": payload["result_path"],
        "weight": weight, "scale": scale, "passed": passed, "before": before,
    }  # fmt: skip
    name = f"{payload['result_path']}/{rank}.json"
    S3.put_object(Bucket=bucket, Key=name, Body=json.dumps(result).encode())


if __name__ == "__main__":
    main()

"""A user's script of the message-passing kind: torch, boto3 and fmi, and ``DATA_PATH``.

Copied into a bucket by the tests and run there by script mode; it knows nothing of perseid.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import boto3
import fmi
import torch

rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
here = Path(__file__).resolve().parent
s3 = boto3.client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
comm = fmi.Communicator(rank, world_size, str(here / "fmi.json"), "inference", 2048)
comm.hint(fmi.hints.fast)


def predict(key: str) -> tuple[int, float, float, int]:
    """Rows, model seconds, bits and batches of this rank's file."""
    with tempfile.TemporaryDirectory() as own:
        s3.download_file(os.environ["DATA_BUCKET"], key, f"{own}/part.pt")
        data = torch.load(f"{own}/part.pt", weights_only=False)
    loader = torch.utils.data.DataLoader(data, batch_size=int(os.environ["BATCH_SIZE"]))
    seconds, bits, batches = 0.0, 0, 0
    for image, magnitude, _ in loader:
        began = time.perf_counter()
        image.float().mean(dim=(1, 2, 3)) + magnitude.float().sum(dim=1)
        seconds += time.perf_counter() - began
        bits += 8 * (image.nbytes + magnitude.nbytes)
        batches += 1
    return len(data), seconds, float(bits), batches


def main() -> None:
    key = os.environ["DATA_PATH"]
    print(f"rank {rank} of {world_size} works on {key}")
    comm.barrier()
    rows, seconds, bits, batches = predict(key)
    total = comm.allreduce(rows, fmi.func(fmi.op.sum), fmi.types(fmi.datatypes.int))
    slowest = comm.reduce(seconds, 0, fmi.func(fmi.op.max), fmi.types(fmi.datatypes.double))
    each = comm.gather([rank, rows], 0, fmi.types(fmi.datatypes.int_list, 2))
    result = {
        "total_cpu_time (seconds)": seconds,
        "total_cpu_memory (MB)": 12.5,
        "execution_time (seconds/batch)": seconds / (rows / int(os.environ["BATCH_SIZE"])),
        "num_batches": batches,
        "batch_size": int(os.environ["BATCH_SIZE"]),
        "device": "cpu",
        "throughput_bps": bits / seconds,
        "sample_persec": rows / seconds,
        "result_path": os.environ["RESULT_PATH"],
        "data_path": key,
        "rows_of_all": total,
        "rows_of_each": each,
        "slowest": slowest is not None and slowest >= seconds,
    }
    name = f"{os.environ['RESULT_PATH']}/{rank}.json"
    s3.put_object(Bucket=os.environ["S3_BUCKET"], Key=name, Body=json.dumps(result).encode())


if __name__ == "__main__":
    main()

"""A user's script of the existing kind: torch and boto3, ``payload.json``, ``<rank>.json``.

Copied into a bucket by the tests and run there by script mode; it knows nothing of perseid.
"""

import json
import os
import tempfile
import time

import boto3
import torch
from helpers.metrics import bits_of  # a module beside it in its folder


def main() -> None:
    rank, world_size = os.environ["RANK"], int(os.environ["WORLD_SIZE"])
    s3 = boto3.client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
    bucket = os.environ["S3_BUCKET"]
    payload = json.loads(s3.get_object(Bucket=bucket, Key="payload.json")["Body"].read())
    key = payload["data_map"][rank]
    print(f"rank {rank} of {world_size} works on {key}")
    if key is None:
        return
    folder = f"/tmp/{os.environ['S3_OBJECT_NAME']}"  # scripts name their folder by its full path
    weights = torch.load(f"{folder}/Fine Tuned/weights.pt", weights_only=True)
    with tempfile.TemporaryDirectory() as own:
        s3.download_file(payload["data_bucket"], key, f"{own}/part.pt")
        data = torch.load(f"{own}/part.pt", weights_only=False)
    loader = torch.utils.data.DataLoader(data, batch_size=int(os.environ["BATCH_SIZE"]))
    seconds, bits, batches = 0.0, 0, 0
    for image, magnitude, _ in loader:
        began = time.perf_counter()
        magnitude.float() @ weights
        seconds += time.perf_counter() - began
        bits += bits_of(image) + bits_of(magnitude)
        batches += 1
    result = {
        "total_cpu_time (seconds)": seconds,
        "total_cpu_memory (MB)": 12.5,
        "execution_time (seconds/batch)": seconds / batches,
        "num_batches": batches,
        "batch_size": int(os.environ["BATCH_SIZE"]),
        "device": "cpu",
        "throughput_bps": bits / seconds,
        "sample_persec": len(data) / seconds,
        "result_path": payload["result_path"],
        "data_path": key,
    }
    body = json.dumps(result).encode()
    s3.put_object(Bucket=bucket, Key=f"{payload['result_path']}/{rank}.json", Body=body)


if __name__ == "__main__":
    main()

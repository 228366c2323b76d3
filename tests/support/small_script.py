"""A user's script of the existing kind that needs boto3 only, as Lambda's runtime has it.

Copied into a bucket by the tests and run there by script mode; it knows nothing of perseid.
"""

import io
import json
import os
import time
import zipfile

import boto3


def main() -> None:
    rank = os.environ["RANK"]
    s3 = boto3.client("s3")
    bucket = os.environ["S3_BUCKET"]
    payload = json.loads(s3.get_object(Bucket=bucket, Key="payload.json")["Body"].read())
    given = payload["data_map"][rank]
    print(f"rank {rank} of {os.environ['WORLD_SIZE']} works on {given}")
    if given is None:
        return
    keys = [given] if isinstance(given, str) else given
    with open(f"/tmp/{os.environ['S3_OBJECT_NAME']}/Fine Tuned/weights.json") as file:
        weight = json.load(file)["weight"]
    began = time.perf_counter()
    size = 0
    for key in keys:
        body = s3.get_object(Bucket=payload["data_bucket"], Key=key)["Body"].read()
        with zipfile.ZipFile(io.BytesIO(body)) as archive:  # what torch.save writes
            size += sum(e.file_size for e in archive.infolist() if "/data/" in e.filename)
    seconds = time.perf_counter() - began
    result = {
        "total_cpu_time (seconds)": seconds,
        "total_cpu_memory (MB)": weight,
        "execution_time (seconds/batch)": seconds,
        "num_batches": len(keys),
        "batch_size": int(os.environ["BATCH_SIZE"]),
        "device": "cpu",
        "throughput_bps": 8 * size / seconds,
        "sample_persec": 8 / seconds,
        "result_path": payload["result_path"],
        "data_path": given,
    }
    name = f"{payload['result_path']}/{rank}.json"
    s3.put_object(Bucket=bucket, Key=name, Body=json.dumps(result).encode())


if __name__ == "__main__":
    main()

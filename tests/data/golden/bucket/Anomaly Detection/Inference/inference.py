import json
import os
import pathlib

bucket = pathlib.Path(os.environ["GOLDEN_BUCKET"])
payload = json.loads((bucket / "payload.json").read_text())
rank = os.environ["RANK"]
given = payload["data_map"][rank]
if given is not None:
    record = {
        "total_cpu_time (seconds)": 0.5,
        "total_cpu_memory (MB)": 1.5,
        "execution_time (seconds/batch)": 0.5,
        "num_batches": 1,
        "batch_size": int(os.environ["BATCH_SIZE"]),
        "device": "cpu",
        "throughput_bps": 1e6,
        "sample_persec": 20.0,
        "result_path": payload["result_path"],
        "data_path": given,
    }
    place = bucket / payload["result_path"]
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{rank}.json").write_text(json.dumps(record))

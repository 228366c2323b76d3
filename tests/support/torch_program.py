"""Every call of torch.distributed that backend perseid has, checked on one rank of several.

``torch_program.py PART…`` under ``perseid comm run``; each part prints ``DONE part``.
"""

from __future__ import annotations

import os
import sys
import warnings

import torch
import torch.distributed as dist

import perseid.torch  # noqa: F401  # registers the backend

warnings.simplefilter("ignore")
torch.set_num_threads(1)
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
OPS = dist.ReduceOp
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
          torch.uint8, torch.int8, torch.complex64, torch.bool]  # fmt: skip
SHAPES = [(), (1,), (5,), (3, 4), (100_003,)]


def filled(shape, dtype, of):
    """The tensor of a rank: small whole numbers, the same wherever it is computed."""
    generator = torch.Generator().manual_seed(of)
    return torch.randint(0, 3, shape, generator=generator).to(dtype)


def same(found, expected):
    assert found.dtype == expected.dtype, (found.dtype, expected.dtype)
    assert torch.equal(found, expected), (found, expected)


def reductions():
    expected = {
        "SUM": lambda all_: sum(all_[1:], all_[0]),
        "PRODUCT": lambda all_: torch.stack(all_).prod(0).to(all_[0].dtype),
        "MIN": lambda all_: torch.stack(all_).min(0).values,
        "MAX": lambda all_: torch.stack(all_).max(0).values,
    }
    for dtype in DTYPES[:-2]:
        for shape in SHAPES:
            everyone = [filled(shape, dtype, r) for r in range(size)]
            for name, function in expected.items():
                mine = everyone[rank].clone()
                dist.all_reduce(mine, op=getattr(OPS, name))
                same(mine, function(everyone))
                mine = everyone[rank].clone()
                dist.reduce(mine, dst=1, op=getattr(OPS, name))
                if rank == 1:
                    same(mine, function(everyone))
    mean = filled((7,), torch.float64, rank)
    dist.all_reduce(mean, op=OPS.AVG)
    assert torch.allclose(mean, sum(filled((7,), torch.float64, r) for r in range(size)) / size)
    for name, function in {
        "BAND": "bitwise_and",
        "BOR": "bitwise_or",
        "BXOR": "bitwise_xor",
    }.items():
        found = filled((9,), torch.int32, rank)
        dist.all_reduce(found, op=getattr(OPS, name))
        whole = filled((9,), torch.int32, 0)
        for other in range(1, size):
            whole = getattr(torch, function)(whole, filled((9,), torch.int32, other))
        same(found, whole)
    crossed = filled((4, 6), torch.float32, rank).t()
    dist.all_reduce(crossed)
    same(crossed, sum(filled((4, 6), torch.float32, r) for r in range(size)).t())
    several = [filled(shape, torch.float32, rank) for shape in SHAPES]
    with dist._coalescing_manager():
        for one in several:
            dist.all_reduce(one)
    for one, shape in zip(several, SHAPES, strict=True):
        same(one, sum(filled(shape, torch.float32, r) for r in range(size)))
    later = [filled((1000,), torch.float32, rank + i) for i in range(20)]
    works = [dist.all_reduce(one, async_op=True) for one in later]
    for i, work in enumerate(works):
        assert work.wait()
        assert work.is_completed()
        same(later[i], sum(filled((1000,), torch.float32, r + i) for r in range(size)))
    future = dist.all_reduce(torch.ones(3), async_op=True).get_future()
    assert future.wait()[0][0] == size


def movements():
    for dtype in DTYPES:
        for shape in SHAPES[1:]:
            everyone = [filled(shape, dtype, r) for r in range(size)]
            mine = everyone[rank].clone()
            dist.broadcast(mine, src=2)
            same(mine, everyone[2])
            found = [torch.empty(shape, dtype=dtype) for _ in range(size)]
            dist.all_gather(found, everyone[rank])
            for one, other in zip(found, everyone, strict=True):
                same(one, other)
            found = [torch.empty(shape, dtype=dtype) for _ in range(size)] if rank == 1 else None
            dist.gather(everyone[rank], found, dst=1)
            for one, other in zip(found or [], everyone, strict=False):
                same(one, other)
            mine = torch.empty(shape, dtype=dtype)
            dist.scatter(mine, everyone if rank == 1 else None, src=1)
            same(mine, everyone[rank])
            joined = torch.empty((size * shape[0], *shape[1:]), dtype=dtype)
            dist.all_gather_into_tensor(joined, everyone[rank])
            same(joined, torch.cat(everyone))
            parts = [filled(shape, dtype, 10 * rank + to) for to in range(size)]
            came = [torch.empty(shape, dtype=dtype) for _ in range(size)]
            dist.all_to_all(came, parts)
            for other, one in enumerate(came):
                same(one, filled(shape, dtype, 10 * other + rank))
    split = [r + 1 for r in range(size)]
    out = torch.empty(sum([rank + 1] * size))
    dist.all_to_all_single(out, torch.arange(float(sum(split))), [rank + 1] * size, split)
    start = float(sum(split[:rank]))
    same(out, torch.cat([torch.arange(start, start + rank + 1)] * size))
    same_size = torch.empty(2 * size)
    dist.all_to_all_single(same_size, torch.arange(2.0 * size) + 100 * rank)
    same(same_size, torch.cat([torch.arange(2.0) + 2 * rank + 100 * r for r in range(size)]))
    uneven = [torch.empty(r + 1) for r in range(size)]
    dist.all_gather(uneven, torch.full((rank + 1,), float(rank)))
    for other, one in enumerate(uneven):
        same(one, torch.full((other + 1,), float(other)))


def scattered_sums():
    for op, share in ((OPS.SUM, 1), (OPS.AVG, size)):
        everyone = [filled((2 * size, 3), torch.float32, r) for r in range(size)]
        whole = sum(everyone) / share
        part = torch.empty(2, 3)
        dist.reduce_scatter_tensor(part, everyone[rank], op=op)
        assert torch.allclose(part, whole[2 * rank : 2 * rank + 2])
        part = torch.empty(2, 3)
        dist.reduce_scatter(part, list(everyone[rank].chunk(size)), op=op)
        assert torch.allclose(part, whole[2 * rank : 2 * rank + 2])


def objects():
    found = [None] * size
    dist.all_gather_object(found, {"rank": rank, "text": "x" * rank})
    assert [one["rank"] for one in found] == list(range(size))
    told = [{"seed": 7}, "b"] if rank == 1 else [None, None]
    dist.broadcast_object_list(told, src=1)
    assert told == [{"seed": 7}, "b"]
    into = [None] * size if rank == 0 else None
    dist.gather_object((rank, "y"), into, dst=0)
    assert into == ([(r, "y") for r in range(size)] if rank == 0 else None)
    mine = [None]
    dist.scatter_object_list(mine, [f"for {r}" for r in range(size)] if rank == 2 else None, src=2)
    assert mine == [f"for {rank}"]


def messages():
    right, left = (rank + 1) % size, (rank - 1) % size
    for count in (0, 1, 1000, 2_000_000):
        out, back = torch.full((count,), float(rank)), torch.empty(count)
        work = dist.irecv(back, left, tag=count)
        dist.isend(out, right, tag=count).wait()
        work.wait()
        same(back, torch.full((count,), float(left)))
        sends = dist.P2POp(dist.isend, out, right)
        receives = dist.P2POp(dist.irecv, back, left)
        for one in dist.batch_isend_irecv([receives, sends]):
            one.wait()
        same(back, torch.full((count,), float(left)))
    if rank == 0:
        seen = {dist.recv(torch.empty(2)) for _ in range(size - 1)}
        assert seen == set(range(1, size))
    else:
        dist.send(torch.ones(2), 0)
    works = [dist.irecv(torch.empty(1), left, tag=tag) for tag in (5, 4, 3)]
    for tag in (3, 4, 5):
        dist.send(torch.full((1,), float(tag)), right, tag=tag)
    for work in works:
        work.wait()


def groups():
    for ranks in ([0, size - 1], [1, 0], list(range(size))):
        group = dist.new_group(ranks)
        if rank in ranks:
            one = torch.full((3,), float(rank))
            dist.all_reduce(one, group=group)
            assert one[0] == sum(ranks)
            assert dist.get_world_size(group) == len(ranks)
            dist.destroy_process_group(group)
    # A ring of pairs, each rank in two of them in an order of its own: none may wait for another.
    pairs = [sorted((r, (r + 1) % size)) for r in range(size)]
    members = [dist.new_group(pair) for pair in pairs]
    mine = [rank, (rank - 1) % size]
    tensors = [torch.ones(1000) for _ in mine]
    works = [
        dist.all_reduce(tensor, group=members[number], async_op=True)
        for tensor, number in zip(tensors, mine, strict=True)
    ]
    for work, tensor in zip(works, tensors, strict=True):
        work.wait()
        assert tensor[0] == 2
    dist.barrier()


SMALL_DTYPES = [torch.complex32, torch.float8_e5m2, torch.uint16, torch.bool, torch.complex128]


def alike(a, b):
    """By their bits: torch compares not every type."""
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def odd_tensors():
    """Tensors whose memory is not simply their elements, without elements, of rare types."""
    for dtype in SMALL_DTYPES:
        one = filled((6,), torch.float32, rank).to(dtype)
        found = [torch.empty_like(one) for _ in range(size)]
        dist.all_gather(found, one)
        everyone = [filled((6,), torch.float32, r).to(dtype) for r in range(size)]
        assert all(alike(a, b) for a, b in zip(found, everyone, strict=True)), dtype
        dist.broadcast(one, 1)
        assert alike(one, everyone[1])
    half = torch.full((4,), 1 + 2j, dtype=torch.complex32)
    dist.all_reduce(half)
    assert half.tolist() == [size * (1 + 2j)] * 4
    for op, expected in ((OPS.SUM, True), (OPS.MIN, False), (OPS.MAX, True)):
        truth = torch.tensor([rank == 1, True, False])
        dist.all_reduce(truth, op=op)
        assert truth.tolist() == [expected, True, False]
    base = torch.full((3,), complex(rank, 1))
    for view in (base.conj().imag, base[::2]):
        copy = view.clone().resolve_conj().resolve_neg()
        dist.all_reduce(view)
        dist.all_reduce(copy)
        assert torch.equal(view, copy), view
        dist.broadcast(view, 2)
    assert base.grad is None
    weights = torch.ones(3, requires_grad=True)
    dist.all_reduce(weights.data)
    with torch.no_grad():
        dist.broadcast(weights, 0)
    for shape in ((0,), (0, 3), (3, 0)):
        none = torch.empty(shape)
        dist.all_reduce(none)
        dist.broadcast(none, 1)
        dist.reduce(none, 1)
        found = [torch.empty(shape) for _ in range(size)]
        dist.all_gather(found, none)
        dist.all_to_all(found, [none] * size)
        dist.all_gather_into_tensor(torch.empty(shape[0] * size, *shape[1:]), none)
        dist.reduce_scatter_tensor(none, torch.empty(shape[0] * size, *shape[1:]))
        dist.all_to_all_single(torch.empty(shape[0] * size, *shape[1:]),
                               torch.empty(shape[0] * size, *shape[1:]))  # fmt: skip
        dist.scatter(none, found if rank == 1 else None, src=1)
        dist.gather(none, found if rank == 0 else None, dst=0)
        works = [dist.isend(none, (rank + 1) % size), dist.irecv(none, (rank - 1) % size)]
        for work in works:
            work.wait()
    # Some ranks have nothing for some others.
    counts = [to if rank else 0 for to in range(size)]
    back = [rank if source else 0 for source in range(size)]
    came = torch.empty(sum(back), 2)
    dist.all_to_all_single(came, torch.full((sum(counts), 2), float(rank)), back, counts)
    assert came[:, 0].tolist() == [float(s) for s in range(1, size) for _ in range(rank)]
    columns = torch.zeros(4, 5).t()
    dist.recv(columns, rank - 1) if rank % 2 else None
    if not rank % 2 and rank + 1 < size:
        dist.send(torch.arange(20.0).reshape(4, 5).t(), rank + 1)
    assert not rank % 2 or torch.equal(columns, torch.arange(20.0).reshape(4, 5).t())


def loader():
    """Workers of a DataLoader, forked while collectives are under way."""
    from torch.utils.data import DataLoader, TensorDataset

    rows = DataLoader(TensorDataset(torch.arange(64.0)), batch_size=8, num_workers=2)
    total = torch.zeros(1)
    for (batch,) in rows:
        work = dist.all_reduce(torch.ones(50_000), async_op=True)
        total += batch.sum()
        work.wait()
    dist.all_reduce(total)
    assert total == size * 64 * 63 / 2
    child = os.fork()
    if not child:
        told = b""
        for call in (lambda: dist.all_reduce(torch.ones(1)),
                     lambda: dist.all_reduce(torch.ones(1), async_op=True).wait(),
                     lambda: dist.send(torch.ones(1), (rank + 1) % size)):  # fmt: skip
            try:
                call()
            except Exception as error:
                told += str(error).encode()
        os._exit(0 if told.count(b"belongs to process") == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0, "the child's calls name the process that has joined"
    dist.barrier()


def model():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(20, 300), torch.nn.GELU(), torch.nn.Linear(300, 1))


def trained(steps=12):
    """The weights after some steps of DDP; batches differ from rank to rank."""
    net = torch.nn.parallel.DistributedDataParallel(model(), bucket_cap_mb=0.01)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(steps):
        generator = torch.Generator().manual_seed(100 * step + rank)
        rows = torch.randn(32, 20, generator=generator)
        optimizer.zero_grad()
        loss = (net(rows).squeeze() - rows.sum(1)).square().mean()
        loss.backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()]), float(loss)


def ddp():
    ours, loss = trained()
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{os.environ['GLOO_FILE']}", rank=rank,
                            world_size=size)  # fmt: skip
    theirs, _ = trained()
    apart = (ours - theirs).abs().max() / theirs.abs().max()
    everyone = [torch.empty_like(ours) for _ in range(size)]
    dist.all_gather(everyone, ours)
    assert all(torch.equal(one, ours) for one in everyone), "all ranks have the same bits"
    dist.destroy_process_group()
    dist.init_process_group("perseid", init_method="perseid://")
    print(f"APART {apart:.3e} {loss:.4f}", flush=True)
    assert apart < 1e-5


def fsdp():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (size,))
    net = model()
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    whole = model()
    alone = torch.optim.SGD(whole.parameters(), lr=1e-2)
    for step in range(5):
        rows = [
            torch.randn(8, 20, generator=torch.Generator().manual_seed(100 * step + r))
            for r in range(size)
        ]
        optimizer.zero_grad()
        (net(rows[rank]).squeeze() - rows[rank].sum(1)).square().mean().backward()
        optimizer.step()
        alone.zero_grad()
        all_rows = torch.cat(rows)
        (whole(all_rows).squeeze() - all_rows.sum(1)).square().mean().backward()
        alone.step()
    for sharded, plain in zip(net.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(sharded.full_tensor(), plain, atol=1e-5)


if __name__ == "__main__":
    dist.init_process_group("perseid", init_method="perseid://")
    assert dist.get_backend() == "perseid"
    assert (dist.get_rank(), dist.get_world_size()) == (rank, size)
    for name in sys.argv[1:]:
        globals()[name]()
        print(f"DONE {name}", flush=True)
    dist.destroy_process_group()

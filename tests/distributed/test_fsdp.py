"""FSDP2 shards a decoder over two gloo ranks, and a plain torch optimizer trains it as one process would."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import torch
import torch.distributed as dist
from gptloom import fast
from gptloom.config.model import ModelConfig
from gptloom.fast.train import TrainingPass
from gptloom.model.build import build_model
from gptloom.model.loss import Objective

rank, world, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.manual_seed(0)
# Widths that two ranks do not divide evenly: 13 tokens, 18 wide.
model = build_model(ModelConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=18))
wrapped = model
if world > 1:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
objective = Objective(model)
why = fast.why_not(objective)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
passes = TrainingPass(objective, optimizer.zero_grad)
losses = []
for step in range(4):
    ids = torch.randint(13, (4, 9), generator=torch.Generator().manual_seed(step))
    mine = ids[rank * 4 // world : (rank + 1) * 4 // world]
    nats = passes((mine[:, :-1], mine[:, 1:]), world / 32)  # FSDP takes the mean over the ranks
    if world > 1:
        dist.all_reduce(nats)
    optimizer.step()
    losses.append(nats.item() / 32)
if rank == 0:
    print(json.dumps({"losses": losses, "why": why, "path": passes.path}))
if world > 1:
    dist.destroy_process_group()
"""


def run(world, folder):
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    words = [[sys.executable, "-c", PROGRAM, str(rank), str(world), str(folder / "meeting")] for rank in range(world)]
    ranks = [
        subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for one in words
    ]
    outputs = [process.communicate(timeout=120) for process in ranks]
    assert all(process.returncode == 0 for process in ranks), "\n".join(errors[-3000:] for _, errors in outputs)
    return json.loads(outputs[0][0].splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="the ranks meet over Linux's loopback")
def test_a_sharded_decoder_is_trained_by_the_reference_as_one_process_would(tmp_path):
    alone, sharded = run(1, tmp_path), run(2, tmp_path)
    assert (alone["why"], alone["path"]) == (None, "fast")
    assert "DTensor" in sharded["why"] and sharded["path"] == "reference"
    assert sharded["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert sharded["losses"][-1] != sharded["losses"][0]

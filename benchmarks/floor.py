"""The least that starting to train takes: import torch, make a model and AdamW, take one step.

``python -m benchmarks.floor PROCESSES FOLDER`` starts the ranks without importing anything itself,
and each leaves ``FOLDER/step-<rank>`` when its first step is done. The model is that of
``experiment=tiny``, so transformers is imported here as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start(size: int, folder: str) -> int:
    """Runs the ranks; the largest exit code."""
    from benchmarks.common import free_port, rank_environment

    port = free_port()
    command = [sys.executable, "-m", "benchmarks.floor", "rank", folder]
    ranks = [subprocess.Popen(command, env=rank_environment(r, size=size, port=port)) for r in range(size)]
    return max(rank.wait() for rank in ranks)


def one_step(folder: Path) -> None:
    """One rank: build, meet the others, step."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from transformers import BertConfig, BertForSequenceClassification

    for name in ("RANK", "SIZE"):  # mpirun's ranks
        if (value := os.environ.get(f"OMPI_COMM_WORLD_{name}")) is not None:
            os.environ["WORLD_SIZE" if name == "SIZE" else name] = value
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=128, num_labels=5
    )
    model: torch.nn.Module = BertForSequenceClassification(config)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(0, 30000, (4, 32))
    scores = model(input_ids=tokens).logits
    torch.nn.functional.cross_entropy(scores, torch.zeros(4, dtype=torch.int64)).backward()
    optimizer.step()
    (folder / f"step-{os.environ.get('RANK', '0')}").write_text("1\n")
    if several:
        dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "rank":
        one_step(Path(sys.argv[2]))
    else:
        sys.exit(start(int(sys.argv[1]), sys.argv[2]))

"""How far a rank's memory rises while a model is built, split over the ranks and handed to its engine.

A decoder of 187 M parameters, new or from a file in fp32 or bfloat16. ``whole`` builds it whole on every rank
before it is split. Counted is anonymous memory, as in `benchmarks.state_memory`, from just before set-up, in
units of the model in fp32; ``held`` is what is left after it: weights, and ZeRO-3's master copy.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import Numbers, measure_cases

if TYPE_CHECKING:
    from torch import nn

ENGINES = ("fsdp", "zero3")
SOURCES = ("new", "new-whole", "fp32", "fp32-whole", "bf16", "bf16-whole")
NAMES = tuple(f"{engine}-{source}" for engine in ENGINES for source in SOURCES)
SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16}
VOCABULARY = 32000
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def main() -> None:
    settings = {"model_bytes": model_bytes()}
    measure_cases("building_memory", __doc__, cases=NAMES, processes=[2, 4], repeats=1, settings=settings)


def worker(name: str, folder: Path) -> Numbers:
    """This rank's part; a small model first, which pays for what is imported and connected once."""
    import torch

    from benchmarks.engines import CASES, job, strategy_of, world_of_this_rank
    from benchmarks.state_memory import watched
    from distrib.parallel import building

    torch.set_num_threads(1)
    engine, source, *whole = name.split("-")
    case, world = CASES[engine], world_of_this_rank()
    if world.rank == 0 and source != "new":
        new_model().to(getattr(torch, DTYPES[source])).save_pretrained(folder)
    small = job(size=world.size, precision=case.precision, width=64)
    with strategy_of(case, world, job=small) as strategy:
        strategy.reduce({"written": torch.ones(())})
    size = model_bytes()  # imports the model's code
    if whole:
        building.WHOLE_BYTES = sys.maxsize
    build = new_model if source == "new" else partial(model_of_file, folder)
    with ExitStack() as stack:
        set_up = strategy_of(case, world, job=dataclasses.replace(small, build_model=build))
        before, peak, after = watched(lambda: stack.enter_context(set_up))
    return {"peak": (peak - before) / size, "held": (after - before) / size}


def model_bytes() -> int:
    """In fp32."""
    import torch

    with torch.device("meta"):
        return sum(parameter.nbytes for parameter in new_model().parameters())


def new_model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **SHAPE))


def model_of_file(folder: Path) -> nn.Module:
    from distrib.models.huggingface import HuggingFace
    from distrib.tasks.base import Vocabulary
    from distrib.tasks.causal_lm import CausalLM

    vocabulary = Vocabulary(labels=(), vocab_size=VOCABULARY)
    return HuggingFace(path=str(folder)).build(CausalLM(), vocabulary)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(worker(sys.argv[2], Path(sys.argv[3]))), flush=True)
    else:
        main()

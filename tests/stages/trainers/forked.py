"""Trains in processes that can be killed: one server imports torch once and forks for each line.

stdin   <directory>     fork a process that goes on with the training there
stdout  <process id>    of it; then, when it has ended: <exit code>, negative for a signal
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pyarrow as pa
import torch

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.nouns import Inputs, Job
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import StepDir
from foresift.stages.trainers.causal_lm import CausalLM
from tests.corpora import Serial

PART = CausalLM(
    length=16, batch_tokens=64, micro_tokens=64, threads=1, checkpoint_every=5, max_document=4096
)


def go(inputs: Inputs, out: Path) -> None:
    """Train to the end, and declare the step done."""
    StepDir(out).open()
    facts = PART.run(inputs, StepDir(out), Job(engine=Serial(), rng=Rng(0)))
    StepDir(out).finish(facts)


def given(base: str, plan: str, model: str) -> Inputs:
    return Inputs(
        corpus=Corpus(Path(base)),
        plan=StepDir(Path(plan)),
        model=ModelSpec(init=model, tokenizer="bytes", device="cpu"),
    )


def serve() -> None:
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    inputs = given(*sys.argv[1:4])
    go(inputs, Path(sys.argv[4]))
    gc.freeze()  # what is there already is not gone through again in each process
    print(0, flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                go(inputs, Path(line.strip()))
                os._exit(0)
            except BaseException as error:  # told by the exit code, whatever it is
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()

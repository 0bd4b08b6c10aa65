"""Small corpora made by hand, and a serial engine, for tests of parts that read a Corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.nouns import Facts, Inputs, Job, Resources, Rng, Stage, StepDir
from foresift.pipeline.store import shard_facts, write_shard
from foresift.pipeline.tables import content_bytes, content_ids, content_texts


def make_corpus(
    tmp_path: Path,
    shards: Sequence[Any],
    *,
    holdout: Sequence[Sequence[bool]] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Corpus:
    """A corpus under `tmp_path/base`, as a reader would leave it.

    `shards` lists, for each shard, its texts or a table of content columns. `holdout` marks rows
    for each shard (default: none). `columns` maps `step.column` to the values for each shard (a
    sequence of shards, each a sequence or an Arrow array); each becomes the sidecar of its step.
    """
    corpus = Corpus(tmp_path / "base")
    corpus.base.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(shards):
        table = content if isinstance(content, pa.Table) else _texts(content)
        flags = holdout[number] if holdout is not None else [False] * table.num_rows
        write_shard(StepDir(corpus.base).shard(f"part-{number:05d}"), _base(table, number, flags))
    by_step: dict[str, dict[str, Sequence[Any]]] = {}
    for public, values in (columns or {}).items():
        step, _, name = public.partition(".")
        by_step.setdefault(step, {})[name] = values
    for step, values_of in by_step.items():
        corpus = _add_step(corpus, step, tmp_path / step, values_of)
    return corpus


def drop(corpus: Corpus, path: Path, kept: Sequence[Sequence[bool]]) -> Corpus:
    """The corpus after a decision that keeps the rows marked, for each shard."""
    for shard, flags in zip(corpus.shards(), kept, strict=True):
        ids = shard.load(["id"])["id"]
        table = pa.table({"id": ids, "kept": pa.array(list(flags), pa.bool_())})
        write_shard(StepDir(path).shard(shard.name), table)
    return corpus.with_mask(path)


def run(stage: Stage, corpus: Corpus, out: Path, *, shuffle: int | None = None) -> Facts:
    """Run a stage as the pipeline does: open the directory, run, write `stage.json` last."""
    step = StepDir(out)
    step.open()
    facts = stage.run(Inputs(corpus=corpus), step, Job(engine=Serial(shuffle), rng=Rng(0)))
    step.finish(facts)
    return facts


class Serial:
    """An engine in this process; a `shuffle` seed makes it take the items in another order."""

    def __init__(self, shuffle: int | None = None) -> None:
        self.shuffle = shuffle

    def map(
        self, task: Callable[[Any], Facts], items: Sequence[Any], resources: Resources
    ) -> Iterator[tuple[int, Facts]]:
        order = np.arange(len(items))
        if self.shuffle is not None:
            order = np.random.default_rng(self.shuffle).permutation(len(items))
        for position in order.tolist():
            yield position, task(items[position])


def tree(path: Path) -> dict[str, bytes]:
    """Every file under a directory: relative name -> bytes."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def _texts(texts: Sequence[str | None]) -> pa.Table:
    return pa.table({"text": pa.array(list(texts), pa.string())})


def _base(content: pa.Table, number: int, holdout: Sequence[bool]) -> pa.Table:
    sizes = content_bytes(content)
    tokens = [len(text.split()) for text in content_texts(content)]
    sources = [f"made/{number}#{row}" for row in range(content.num_rows)]
    front = {
        "id": content_ids(content),
        "source": pa.array(sources, pa.string()),
        "holdout": pa.array(list(holdout), pa.bool_()),
        "n_bytes": pa.array(sizes, pa.int64()),
        "n_tokens": pa.array(tokens, pa.int64()),
    }
    return pa.table({**front, **{name: content[name] for name in content.column_names}})


def _add_step(
    corpus: Corpus, step: str, path: Path, values_of: Mapping[str, Sequence[Any]]
) -> Corpus:
    for number, shard in enumerate(corpus.shards()):
        arrays = {name: values[number] for name, values in values_of.items()}
        file = StepDir(path).shard(shard.name)
        write_shard(file, pa.table({"id": shard.load(["id"])["id"], **arrays}))
        assert shard_facts(file)["ids"] == shard.ids
    return corpus.with_columns(step, path, list(values_of))

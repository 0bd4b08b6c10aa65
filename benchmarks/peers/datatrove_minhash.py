"""MinHash deduplication by datatrove's four steps on one worker.

    python datatrove_minhash.py FOLDER_OF_JSONL OUT [default|split]

`default` is datatrove as it comes (its English tokenizer); `split` replaces that by `str.split`.
"""

from __future__ import annotations

import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer


class Split(WordTokenizer):
    """Words between spaces."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        raise AssertionError("not used by MinHash")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise AssertionError("not used by MinHash")


def main(source: str, out: str, words: str = "default") -> None:
    config = MinhashConfig(
        n_grams=5,
        num_buckets=14,
        hashes_per_bucket=8,
        hash_config=HashConfig(hash_fc="xxhash", precision=64),
    )
    signature = MinhashDedupSignature(f"{out}/signatures", config=config, language="eng")
    if words == "split":
        signature.word_tokenizer = Split()
    reader = JsonlReader(source)
    buckets = MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config)
    cluster = MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=config)
    keep = MinhashDedupFilter(f"{out}/remove")
    writer = JsonlWriter(f"{out}/kept", compression=None)
    steps = [([reader, signature], 1), ([buckets], 14), ([cluster], 1), ([reader, keep, writer], 1)]
    for number, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=1, logging_dir=f"{out}/logs/{number}"
        ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])

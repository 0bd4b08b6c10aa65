"""Decisions of datatrove's four heuristic filters on every document, and what each costs.

    python datatrove_heuristics.py CORPUS.jsonl OUT.jsonl

Each filter sees the whole text of each document (in a pipeline C4's rewrites it). The order of the
filters lets three of them share one splitting into words, which datatrove remembers. Writes for
each document four values, true or the reason; prints one line of JSON with seconds by filter.
"""

from __future__ import annotations

import json
import sys
import time

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)


def main() -> None:
    filters = [
        GopherQualityFilter(), GopherRepetitionFilter(), FineWebQualityFilter(), C4QualityFilter(),
    ]  # fmt: skip
    for each in filters:
        each.filter(Document(text="The tokenizer is loaded by this.\n" * 9, id=""))
    seconds = [0.0] * len(filters)
    with open(sys.argv[1], "rb") as corpus, open(sys.argv[2], "w", encoding="utf-8") as out:
        for line in corpus:
            text = json.loads(line)["text"]
            found: list[object] = []
            for i, each in enumerate(filters):
                start = time.process_time()
                try:
                    kept = each.filter(Document(text=text, id=""))
                except Exception as error:
                    kept = (False, f"{type(error).__name__}: {error}")
                seconds[i] += time.process_time() - start
                found.append(True if kept is True else kept[1])
            out.write(json.dumps(found) + "\n")
    names = ("gopher_quality", "gopher_repetition", "fineweb", "c4")
    print(json.dumps(dict(zip(names, seconds, strict=True))))


if __name__ == "__main__":
    main()

"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data sets in ../shared/data, which are not here")
    return SHARED


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model folder with weights; transformers says nothing, as the command line has it."""
    from transformers.utils import logging

    from foresift.pipeline.lm.model import ModelSpec, load

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    monkeypatch.setattr(logging, "_tqdm_active", False)
    loaded = load(ModelSpec(init="configs/models/tiny", device="cpu"))
    path = tmp_path / "checkpoint"
    loaded.model.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    yield path
    logging.set_verbosity(before)

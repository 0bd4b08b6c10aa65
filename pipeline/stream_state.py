"""State of a stream in one file: arrays and tensors as safetensors, all else as JSON beside them.

The file replaces an older one in a single move, so that what is read is always whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import State

#: what stands in the JSON for an array or a tensor; the values are in the same file
_MARK = "__stored__"


def write_state(state: State, path: Path) -> None:
    """Keep a state (numbers, strings, lists, mappings, arrays, tensors)."""
    tensors: dict[str, torch.Tensor] = {}
    plain = json.dumps(_out(state, "", tensors))
    temporary = path.with_name(path.name + ".part")
    save_file(tensors, str(temporary), metadata={"state": plain})
    os.replace(temporary, path)


def read_state(path: Path) -> State:
    """What `write_state` kept; DataError where the file is missing or is not one of those."""
    try:
        with safe_open(str(path), framework="pt") as file:
            plain = json.loads((file.metadata() or {})["state"])
            found: State = _back(plain, file)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise DataError(
            f"no state of a stream can be read here ({error})", where=str(path)
        ) from error
    return found


def _out(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {_MARK: "tensor", "at": place}
    if isinstance(value, np.ndarray):
        tensors[place] = torch.from_numpy(np.array(value, order="C"))
        return {_MARK: "array", "at": place}
    if isinstance(value, dict):
        bad = [key for key in value if not isinstance(key, str)]
        if bad:
            raise TypeError(f"{place or 'state'}: names must be strings, got {bad[0]!r}")
        return {k: _out(v, f"{place}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_out(v, f"{place}/{i}", tensors) for i, v in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def _back(value: Any, file: Any) -> Any:
    if isinstance(value, dict):
        if _MARK in value:
            tensor = file.get_tensor(value["at"])
            return tensor.numpy() if value[_MARK] == "array" else tensor
        return {k: _back(v, file) for k, v in value.items()}
    return [_back(v, file) for v in value] if isinstance(value, list) else value

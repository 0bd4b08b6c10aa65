"""ModelSpec: which causal language model, and how it is loaded. No pickle is ever read.

`init` is one of
- a folder with weights (a checkpoint; safetensors),
- a folder with a configuration only, or a configuration `.json`: random weights drawn from `seed`,
- a model id on the hub.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import xxhash

from foresift.pipeline.errors import ModelError
from foresift.pipeline.parts import Part, digest, tuning

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Part):
    """A causal language model: where its weights and its tokenizer come from, and its precision."""

    init: str
    """A folder with weights, a folder or `.json` with a configuration, or a hub id."""
    tokenizer: str = ""
    """A folder, `tokenizer.json` or hub id; `bytes` is the 256 bytes; empty: beside the model."""
    revision: str = ""
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run. Off unless you ask for it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of weights and activations; losses are accumulated in float32 always."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel."""
    max_length: int = 1024
    """Tokens after which a document is cut, its start token included."""
    seed: int = 0
    """Seed of random weights, where there are none to load."""
    template: str = "{prompt}\n"
    """What stands before the response of a `prompt` + `response` row."""
    device: str = tuning("auto")
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    batch_tokens: int = tuning(0)
    """Tokens in one forward, padding included; 0: 2048 on a CPU, 65536 on a GPU."""
    threads: int = tuning(1)
    """CPU threads of one scoring worker; workers are processes."""

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError("max_length must be at least 2: a start token and one to predict")
        if self.batch_tokens < 0 or self.threads < 1:
            raise ValueError("batch_tokens must not be negative, and threads at least 1")
        if "{prompt}" not in self.template:
            raise ValueError("template must contain {prompt}")

    def digest(self) -> str:
        """What this model's numbers depend on: contents of local files, or id and revision."""
        settings = self.settings()
        settings["init"] = _content(self.init, self.revision)
        settings["tokenizer"] = _content(self.tokenizer, "") if self.tokenizer else ""
        return digest(settings)

    def at(self, checkpoint: Path) -> ModelSpec:
        """The same model with the weights and tokenizer of a checkpoint."""
        return replace(self, init=str(checkpoint), tokenizer="", revision="")

    def check(self) -> None:
        """Raise a located error if the model or the tokenizer cannot be had.

        Of local weights the headers are read: a file that is cut off, or a tensor that is missing
        or of another shape than the configuration says, is found here and not after hours of work.
        """
        load_config(self)
        path = local(self.init)
        if path and _weights(path):
            _pretrained(self, device_map="meta")
        tokenizer = load_tokenizer(self.tokenizer or self.init, self.trust_remote_code)
        if not self.tokenizer and not len(tokenizer):
            raise ModelError("its tokenizer is empty", where=self.init)


def local(name: str) -> Path | None:
    """The local file or folder that `name` means, looking also among the recipes that ship."""
    for path in (Path(name), _CONFIGS.parent / name, _CONFIGS / name):
        if path.exists():
            return path.resolve()
    if name.startswith((".", "/", "~")) or name.endswith(".json"):
        raise ModelError("no such file or folder", where=name)
    return None


def _content(name: str, revision: str) -> str:
    """A digest of local files, or the name and revision of remote ones."""
    path = None if name == "bytes" else local(name)
    return _folder_digest(path) if path else f"{name}@{revision}"


def _folder_digest(path: Path) -> str:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    kinds = (".json", ".safetensors", ".model", ".txt", ".jinja")
    hasher = xxhash.xxh3_128()
    for file in files:
        if file.is_file() and file.suffix in kinds:
            hasher.update(file.name.encode())
            with open(file, "rb") as handle:
                while block := handle.read(1 << 24):
                    hasher.update(block)
    return str(hasher.hexdigest())


def load_config(spec: ModelSpec) -> Any:
    """The transformers configuration of a model."""
    from transformers import AutoConfig

    path = local(spec.init)
    _refuse_pickles(path, spec.init)
    try:
        if path and path.is_file():
            fields = json.loads(path.read_text(encoding="utf-8"))
            return AutoConfig.for_model(fields.pop("model_type"), **fields)
        return AutoConfig.from_pretrained(
            str(path or spec.init),
            trust_remote_code=spec.trust_remote_code,
            **({"revision": spec.revision} if spec.revision else {}),
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"no usable model configuration: {_first_line(error)}", where=spec.init
        ) from error


@functools.lru_cache(maxsize=4)
def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """A fast tokenizer by folder, file, hub id, or `bytes`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if name == "bytes":
        return _byte_tokenizer()
    path = local(name)
    try:
        if path and path.is_file() and path.name != "tokenizer.json":
            path = path.parent
        if path and path.is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        return AutoTokenizer.from_pretrained(str(path or name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise ModelError(
            f"no usable tokenizer: {_first_line(error)}; name one with `tokenizer:`", where=name
        ) from error


def _byte_tokenizer() -> Any:
    """256 byte tokens and an end-of-text token, as an ordinary saveable fast tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


@dataclass(frozen=True)
class Loaded:
    """A model ready to score, with its tokenizer."""

    model: Any
    tokenizer: Any
    device: str


@functools.lru_cache(maxsize=2)
def load(spec: ModelSpec) -> Loaded:
    """Load model and tokenizer, in eval mode on the chosen device. Cached within the process."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(spec)
    tokenizer = load_tokenizer(spec.tokenizer or spec.init, spec.trust_remote_code)
    options = {"dtype": getattr(torch, spec.dtype), "attn_implementation": spec.attention}
    path = local(spec.init)
    try:
        if path and not _weights(path):
            _fit_vocabulary(config, tokenizer)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(spec.seed)
                model = AutoModelForCausalLM.from_config(config, **options)
        else:
            model = _pretrained(spec, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"does not load: {_first_line(error)}", where=spec.init) from error
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{model.get_input_embeddings().num_embeddings}",
            where=spec.init,
        )
    device = _here(pick_device(spec.device))
    return Loaded(model.to(device).eval(), tokenizer, device)


def _pretrained(spec: ModelSpec, **options: Any) -> Any:
    """The model with its weights; a tensor that is not there is never drawn at random instead."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(local(spec.init) or spec.init),
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, all at once
            **({"revision": spec.revision} if spec.revision else {}),
            **options,
        )
    except SafetensorError as error:
        message = f"its weights are damaged: {_first_line(error)}"
        raise ModelError(message, where=spec.init) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"does not load: {_first_line(error)}", where=spec.init) from error
    wrong = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if wrong:
        raise ModelError(
            f"its weights do not fit its configuration: {len(wrong)} tensors are missing or of "
            f"another shape, such as {wrong[0]}",
            where=spec.init,
        )
    return model


def pick_device(name: str) -> str:
    """`auto` means the GPU where there is one."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _here(device: str) -> str:
    """The device, if this process has it: a driver may name one that only its workers have."""
    import torch

    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"no such device: {_first_line(error)}", where=device) from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise ModelError(f"no such device: CUDA sees {count} GPUs here", where=device)
    return device


def _weights(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*.safetensors"))


def _refuse_pickles(path: Path | None, where: str) -> None:
    """Weights that only exist as pickles are not a configuration without weights."""
    if path is None or not path.is_dir() or _weights(path):
        return
    pickles = [f.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in path.glob(kind)]
    if pickles:
        raise ModelError(
            f"its weights are a pickle ({min(pickles)}), which can run code when it is read; "
            "convert them to safetensors",
            where=where,
        )


def _fit_vocabulary(config: Any, tokenizer: Any) -> None:
    """Random weights have as many tokens as the tokenizer, and its special tokens."""
    config.vocab_size = len(tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name, None))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Which language models exist, which belong together as base and instruct, and how to load one.

The table and `resolve` import nothing heavy; `load_model` and `check_pair` do.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.errors import UserError
from bench.keys import content_key, folder_key
from bench.strict import unknown
from bench.suite import Side

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Kind = Literal["base", "instruct"]
DType = Literal["float32", "bfloat16"]
NANO_WEIGHTS = Path(__file__).parent / "nano" / "weights"


@dataclass(frozen=True)
class ModelSpec:
    """One language model and its place in a pair."""

    name: str
    """What configs and records call it."""
    world: Literal["nano", "real"]
    """`nano`: the embedded synthetic world."""
    source: str
    """Hub id, or a local folder with a Hugging Face checkpoint and its tokenizer."""
    kind: Kind
    """Declared here, never guessed from the name."""
    n_layers: int
    d_model: int | None = None
    """Width of the residual stream; None where not stated."""
    instruct: str | None = None
    """Name of the instruct sibling of a base model; None where it has none."""
    summary: str = ""

    @property
    def is_local(self) -> bool:
        """True if `source` is a folder, so that nothing is fetched."""
        return Path(self.source).is_absolute()


MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="nano",
            world="nano",
            source=str(NANO_WEIGHTS / "base"),
            kind="base",
            n_layers=5,
            d_model=96,
            instruct="nano-it",
            summary="embedded, synthetic, Gemma-2 architecture",
        ),
        ModelSpec(
            name="nano-it",
            world="nano",
            source=str(NANO_WEIGHTS / "instruct"),
            kind="instruct",
            n_layers=5,
            d_model=96,
            summary="embedded, synthetic, nano fine-tuned to answer questions",
        ),
        ModelSpec(
            "gemma-2-2b", "real", "google/gemma-2-2b", "base", 26, 2304, "gemma-2-2b-it", "gated"
        ),
        ModelSpec(
            "gemma-2-2b-it", "real", "google/gemma-2-2b-it", "instruct", 26, 2304, None, "gated"
        ),
        ModelSpec(
            "gemma-2-9b", "real", "google/gemma-2-9b", "base", 42, 3584, "gemma-2-9b-it", "gated"
        ),
        ModelSpec(
            "gemma-2-9b-it", "real", "google/gemma-2-9b-it", "instruct", 42, 3584, None, "gated"
        ),
        ModelSpec(
            name="pythia-70m-deduped",
            world="real",
            source="EleutherAI/pythia-70m-deduped",
            kind="base",
            n_layers=6,
            d_model=512,
            summary="no instruct sibling",
        ),
    )
}


def names() -> list[str]:
    """Every known model, in the order of the table."""
    return list(MODELS)


def resolve(name: str) -> ModelSpec:
    """The model called `name`. Raises UserError with the nearest match for an unknown one."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name]


def on_side(spec: ModelSpec, side: Side) -> ModelSpec:
    """The model of `spec`'s pair that a suite on `side` runs on.

    A base-side suite runs on the model the SAE was trained on, whatever its kind. Raises UserError
    if the instruct side is asked for and no sibling is declared.
    """
    if side == "base" or spec.kind == "instruct":
        return spec
    if spec.instruct is None:
        raise UserError(
            f"model={spec.name!r}: has no instruct sibling, so suites on the instruct side cannot "
            "run; leave them out"
        )
    return resolve(spec.instruct)


def weights_key(spec: ModelSpec) -> str:
    """Hash of the model's name and files, or of its hub id."""
    source = folder_key(Path(spec.source)) if spec.is_local else spec.source
    return content_key([spec.name, source])


def load_model(
    spec: ModelSpec, device: str = "cpu", dtype: DType = "float32"
) -> "HookedTransformer":
    """The model with its tokenizer, weights as published (nothing folded or centred), in eval mode.

    `cfg.model_name` is the spec's name. Raises UserError if a local folder is missing.
    """
    import torch

    torch_dtype: torch.dtype = getattr(torch, dtype)
    with warnings.catch_warnings():
        # TransformerLens 4 will replace HookedTransformer, which sae_bench is written for
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        if spec.is_local:
            model = _load_folder(Path(spec.source), device, torch_dtype)
        else:
            from transformer_lens import HookedTransformer

            model = HookedTransformer.from_pretrained_no_processing(
                spec.source, device=device, dtype=torch_dtype
            )
    model.cfg.model_name = spec.name
    return model.eval()


def check_pair(base: ModelSpec, instruct: ModelSpec, hook_name: str | None = None) -> None:
    """Raise UserError unless an SAE of `base` can be evaluated on `instruct`.

    Compares declarations, configs and tokenizers, and loads no weights: kinds, d_model, number of
    layers, vocabulary map, chat template, and that `hook_name` lies in both.
    """
    pair = f"models {base.name!r} and {instruct.name!r}"
    if instruct.kind != "instruct":
        raise UserError(f"{pair}: {instruct.name!r} is declared {instruct.kind!r}, not 'instruct'")
    facts, other = _facts(base), _facts(instruct)
    for field in ("d_model", "n_layers"):
        if facts[field] != other[field]:
            raise UserError(f"{pair}: {field} differs, {facts[field]} and {other[field]}")
    _check_hook(hook_name, facts["n_layers"])
    tokenizer, instruct_tokenizer = _tokenizer(base), _tokenizer(instruct)
    if tokenizer.get_vocab() != instruct_tokenizer.get_vocab():
        raise UserError(f"{pair}: their tokenizers map tokens to different ids")
    if not instruct_tokenizer.chat_template:
        raise UserError(f"{pair}: the tokenizer of {instruct.name!r} has no chat template")


def _check_hook(hook_name: str | None, n_layers: int) -> None:
    if hook_name is None:
        return
    parts = hook_name.split(".")
    if len(parts) < 3 or parts[0] != "blocks" or not parts[1].isdigit():
        raise UserError(f"hook_name={hook_name!r}: must look like blocks.2.hook_resid_post")
    if int(parts[1]) >= n_layers:
        raise UserError(f"hook_name={hook_name!r}: the models have layers 0 to {n_layers - 1}")


def _facts(spec: ModelSpec) -> dict[str, int]:
    """d_model and n_layers as the checkpoint's own config states them."""
    if spec.is_local:
        config = json.loads((_folder(spec) / "config.json").read_text())
    else:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(spec.source).to_dict()
    return {"d_model": config["hidden_size"], "n_layers": config["num_hidden_layers"]}


def _tokenizer(spec: ModelSpec) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_folder(spec) if spec.is_local else spec.source)


def _folder(spec: ModelSpec) -> Path:
    folder = Path(spec.source)
    if not (folder / "config.json").is_file():
        fix = "run `python bench.py nano build`" if spec.world == "nano" else "check the path"
        raise UserError(f"model={spec.name!r}: no checkpoint in {folder}; {fix}")
    return folder


def _load_folder(folder: Path, device: str, dtype: Any) -> "HookedTransformer":
    """A local Gemma-2 checkpoint. TransformerLens loads hub ids only, so it is converted here."""
    from transformer_lens import HookedTransformer
    from transformer_lens.pretrained.weight_conversions.gemma import convert_gemma_weights
    from transformers import AutoTokenizer, Gemma2ForCausalLM

    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {str(folder)!r}: has no config.json")
    hf_model = Gemma2ForCausalLM.from_pretrained(folder, dtype=dtype)
    cfg = _hooked_config(hf_model.config, device, dtype)
    model = HookedTransformer(cfg, AutoTokenizer.from_pretrained(folder), move_to_device=False)
    model.load_and_process_state_dict(
        convert_gemma_weights(hf_model, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    model.move_model_modules_to_device()
    return model


def _hooked_config(hf: Any, device: str, dtype: Any) -> Any:
    """The HookedTransformerConfig of a Gemma2Config, as TransformerLens writes it for the hub's."""
    from transformer_lens import HookedTransformerConfig

    return HookedTransformerConfig(
        d_model=hf.hidden_size,
        d_head=hf.head_dim,
        n_heads=hf.num_attention_heads,
        n_key_value_heads=hf.num_key_value_heads,
        n_layers=hf.num_hidden_layers,
        d_mlp=hf.intermediate_size,
        n_ctx=hf.max_position_embeddings,
        d_vocab=hf.vocab_size,
        eps=hf.rms_norm_eps,
        act_fn="gelu_pytorch_tanh",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=hf.head_dim,
        rotary_base=hf.rope_parameters["rope_theta"],
        use_attn_scale=True,
        attn_scale=hf.query_pre_attn_scalar**0.5,
        use_local_attn=True,
        window_size=hf.sliding_window,
        attn_types=["local" if t == "sliding_attention" else "global" for t in hf.layer_types],
        attn_scores_soft_cap=hf.attn_logit_softcapping or -1.0,
        output_logits_soft_cap=hf.final_logit_softcapping or -1.0,
        gated_mlp=True,
        final_rms=True,
        use_normalization_before_and_after=True,
        original_architecture="Gemma2ForCausalLM",
        default_prepend_bos=True,
        init_weights=False,
        device=device,
        dtype=dtype,
    )

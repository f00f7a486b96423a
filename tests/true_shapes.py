"""One step of each variant on Gemma-2-2B's shapes with random weights; prints the memory it took.

`python tests/true_shapes.py 2 topk relu`: two layers of the model, these variants; JSON on stdout.
Of the model only the number of layers is smaller, and the numbers are float32 on a CPU.
"""

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script

import torch

from bench import memory, ops, registry
from bench.activations import ActivationStream
from bench.compat import prepare
from bench.config import RunConfig, TrainConfig, VariantConfig
from bench.local_models import FAMILIES
from bench.lockstep import train_in_loop
from bench.models import resolve
from bench.reader import drop_behind
from bench.shapes import GEMMA_2_2B
from bench.texts import Text
from bench.trainee import Trainee
from tests import resident


def main(n_layers: int, names: list[str]) -> None:
    prepare()
    config = RunConfig(
        name="true-shapes",
        model="gemma-2-2b",
        hook_name=f"blocks.{n_layers - 1}.hook_resid_post",
        train=TrainConfig(
            d_sae=16_384,
            tokens=2048,
            batch_size=2048,
            context_size=1024,
            heldout_tokens=1000,
            warmup_fraction=0.0,
        ),
        variants=tuple(VariantConfig(name) for name in names),
    )
    shape = replace(GEMMA_2_2B, n_layers=n_layers)
    found = {"estimate": asdict(memory.estimate(config, shape, 1)), "variants": {}}
    found["loading_estimate"] = memory.loading(shape, "float32")
    model = _model(n_layers)
    found["loaded"] = resident.peak()
    drop_behind(model, config.hook_name)
    resident.forget()
    found["model"] = resident.now()
    stream = ActivationStream(
        model, config.hook_name, _texts, config.train, data_seed=0, needs_sequences=True
    )
    start = time.perf_counter()
    assert stream.d_in == 2304 and stream.scale > 0
    found["reading"], found["reading_s"] = resident.peak(), time.perf_counter() - start
    for name in names:
        resident.forget()
        found["variants"][name] = _train(name, config.train, stream)
        sys.stderr.write(f"{name}: {found['variants'][name]}\n")  # a long run shows where it is
    sys.stdout.write(json.dumps(found))


def _train(name: str, train: TrainConfig, stream: ActivationStream) -> dict[str, object]:
    kind = registry.load("variants", name)
    start = time.perf_counter()
    sae = kind(stream.d_in, train.d_sae, generator=ops.generator(0, "weights"))
    trainee = Trainee(name, sae, train, stream.n_steps)
    train_in_loop([trainee], stream)
    return {
        "peak": resident.peak(),
        "wall_s": time.perf_counter() - start,
        "stop_reason": trainee.outcome.stop_reason,
        "n_steps": trainee.outcome.n_steps,
    }


def _model(n_layers: int):
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import AutoTokenizer, Gemma2Config

    architecture = "Gemma2ForCausalLM"
    cfg = HookedTransformerConfig(
        **FAMILIES[architecture](Gemma2Config(num_hidden_layers=n_layers)),
        original_architecture=architecture,
        model_name="gemma-2-2b",
        init_weights=True,
        device="cpu",
        dtype=torch.float32,
    )
    torch.manual_seed(0)
    # the nano world's tokens are the first of the vocabulary
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano").source)
    return HookedTransformer(cfg, tokenizer, move_to_device=False).eval()


def _texts():
    from bench.nano.tokenizer import alphabetic_words
    from bench.nano.world import make_world

    words = alphabetic_words(make_world())
    for i in range(400):
        yield Text(" ".join(words[(i * 7 + j) % len(words)] for j in range(60)), f"c{i // 2}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

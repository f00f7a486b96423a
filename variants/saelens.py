"""Any training architecture of SAELens as a variant: `saelens:topk`, `saelens:jumprelu`, ...

Activations, losses and inference are those of sae_lens itself; the settings are its config's. Ours
are the initial weights, the optimiser and its schedule, the warm-up of sparsity (their
`*_warm_up_steps` are not fields here) and the threshold of the batch top-k, which is found on the
finished SAE, as their running mean was 10 % off in short trainings.
"""

from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Stream, Variant

KNOBS = {
    "k": Knob("k", raises_l0=True, native=True),
    "l1_coefficient": Knob("l1_coefficient", raises_l0=False, native=False),
    "l0_coefficient": Knob("l0_coefficient", raises_l0=False, native=False),
    "max_iterations": Knob("max_iterations", raises_l0=True, native=True),
}
"""Fields that set sparsity."""
OURS = {
    # 0.1 leaves latents that do next to nothing after a few thousand steps
    "standard": {"decoder_init_norm": 0.5, "l1_coefficient": 0.1},
    "gated": {"decoder_init_norm": 1.0, "l1_coefficient": 0.1},
    "jumprelu": {"decoder_init_norm": 1.0, "l0_coefficient": 1e-3},
    "topk": {"decoder_init_norm": 1.0, "k": 32},
    "batchtopk": {"decoder_init_norm": 1.0, "k": 32.0},
    "matryoshka_batchtopk": {"decoder_init_norm": 1.0, "k": 32.0},
    # a residual threshold is in units of x, which change when the SAE is saved
    "matching_pursuit": {"decoder_init_norm": 1.0, "max_iterations": 32, "residual_threshold": 0.0},
}
"""Defaults of ours for inputs of unit mean squared norm, where SAELens's do not fit."""
AXES = {"gated": {"W_enc": 1, "W_dec": 0}, "matching_pursuit": {"W_dec": 0}}
"""Parameters and the axis that counts latents, where an architecture lacks some of the four."""
NOT_HERE = {"abstopk": "its activations are signed, and suites take act > 0 as active"}
"""Architectures that cannot be scored, and why."""


@dataclass(frozen=True)
class SAELensConfig:
    """Settings of SAELens's `standard`; `saelens:NAME` has those of that architecture."""

    decoder_init_norm: float | None = 0.5
    """Norm of each decoder row before training."""
    l1_coefficient: float = 0.1
    """Weight of the sparsity penalty."""
    lp_norm: float = 1.0
    """Exponent of the norm that is penalised."""

    def __post_init__(self):
        _check_knob(self)


class SAELens(Variant):
    """An architecture that SAELens trains, as `saelens:NAME`; plain `saelens` is `standard`."""

    Config = SAELensConfig
    knob = Knob("l1_coefficient", raises_l0=False, native=False)
    architecture: ClassVar[str] = "standard"
    sae: Any
    """The sae_lens training SAE, which shares its parameters with this."""

    @classmethod
    def of(cls, choice: str) -> type[Variant]:
        return _of(cls, choice)

    def __init__(self, d_in: int, d_sae: int, cfg: Any = None, *, generator: torch.Generator):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        training_class, config_class = _registered()[self.architecture]
        settings = {f.name: deepcopy(getattr(self.cfg, f.name)) for f in fields(self.cfg)}
        if settings.get("residual_threshold"):
            raise ValueError(
                f"residual_threshold={settings['residual_threshold']} is in units of x, which "
                "change when the SAE is saved: leave it 0 and set max_iterations"
            )
        if settings.get("k", 0) > d_sae:
            raise ValueError(f"k={settings['k']} exceeds d_sae={d_sae}")
        if settings.get("matryoshka_widths") == []:
            settings["matryoshka_widths"] = [max(d_sae // n, 1) for n in (16, 4, 1)]
        with torch.random.fork_rng([]):  # it draws weights that are not used
            sae = training_class(config_class(d_in=d_in, d_sae=d_sae, **settings))
        norm = settings.get("decoder_init_norm")
        with torch.no_grad():
            sae.W_dec.copy_(self.W_dec * (1.0 if norm is None else norm))
            if hasattr(sae, "W_enc"):
                sae.W_enc.copy_(sae.W_dec.T)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            delattr(self, name)
        for name, parameter in sae.named_parameters():
            self.register_parameter(name, parameter)  # the very same ones
        vars(self)["sae"] = sae  # no submodule, or a checkpoint would hold them twice

    def get_extra_state(self) -> Tensor:
        """The threshold of a batch top-k, which SAELens replaces in every step; nan for others."""
        return torch.as_tensor(getattr(self.sae, "topk_threshold", torch.nan)).detach().clone()

    def set_extra_state(self, state: Tensor) -> None:
        if hasattr(self.sae, "topk_threshold"):
            self.sae.topk_threshold = state.to(self.sae.topk_threshold)

    def start(self, x: Tensor) -> None:
        self.sae.to(device=str(x.device))  # it keeps note of its device
        with torch.no_grad():
            self.b_dec.copy_(x.mean(0))

    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        if not hasattr(self.sae, "topk_threshold"):
            return self.sae.encode(x)
        # their training class would look at the whole batch
        f = self._rectified(x)
        return f * (f > self.sae.topk_threshold.to(f))

    def decode(self, f: Tensor) -> Tensor:
        return self.sae.decode(f)

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        from sae_lens.saes.sae import TrainStepInput

        coefficients = {
            name: getattr(c, "value", c) * step.sparsity_warmup
            for name, c in self.sae.get_coefficients().items()
        }
        out = self.sae.training_forward_pass(
            TrainStepInput(batch.x, coefficients, step.dead, step.number, is_logging_step=False)
        )
        step.fired(torch.count_nonzero(out.feature_acts.detach(), dim=0))
        losses = dict(out.losses)
        return {"reconstruction": losses.pop("mse_loss"), **losses}

    def after_step(self, batch: Batch, step: Step) -> None:
        if self.architecture == "matching_pursuit":
            # its rows cannot be made unit afterwards without changing which latents it picks
            ops.normalise_rows_(self.W_dec)

    def finish(self, stream: Stream) -> None:
        if hasattr(self.sae, "topk_threshold"):
            acts = (self._rectified(batch.x) for batch in stream)
            self.sae.topk_threshold = ops.threshold_for_l0(acts, self.sae.cfg.k).double()

    def export(self) -> Exported:
        from sae_lens.registry import get_sae_class
        from sae_lens.saes.sae import SAEConfig

        state = {n: v.detach().clone() for n, v in self.sae.state_dict().items()}
        self.sae.process_state_dict_for_saving_inference(state)
        cfg = self.sae.cfg.get_inference_sae_cfg_dict()
        sae_class, config_class = get_sae_class(cfg["architecture"])
        sae = sae_class(config_class.from_dict(cfg))
        sae.load_state_dict(state)
        norms = torch.linalg.vector_norm(sae.W_dec, dim=-1)
        if not torch.allclose(norms, torch.ones_like(norms), atol=1e-5):
            sae.fold_W_dec_norm()
        shared = {f.name for f in fields(SAEConfig)} - {"apply_b_dec_to_input"}
        own = {n: v for n, v in cfg.items() if n not in {*shared, "architecture"}}
        weights = {n: v.detach().clone() for n, v in sae.state_dict().items()}
        return Exported(cfg["architecture"], own, weights)

    def _rectified(self, x: Tensor) -> Tensor:
        return torch.relu(self.sae.encode_with_hidden_pre(x)[1])


@cache  # one class per architecture, so that its instances are of one type
def _of(base: type[SAELens], architecture: str) -> type[Variant]:
    from sae_lens.saes.sae import SAEConfig

    have = {name for name in _registered() if name not in NOT_HERE}
    if architecture not in have:
        why = NOT_HERE.get(architecture, "SAELens trains no such architecture")
        raise ValueError(f"{why}; have: {', '.join(sorted(have))}")
    config_class, ours = _registered()[architecture][1], OURS.get(architecture, {})
    hints, shared = get_type_hints(config_class), {f.name for f in fields(SAEConfig)}
    own = []
    for f in fields(config_class):
        if f.name in shared or f.name.endswith("_warm_up_steps"):
            continue
        default = ours.get(f.name, f.default)
        if default is not MISSING:
            own.append((f.name, hints[f.name], field(default=default)))
        elif f.default_factory is not MISSING:
            own.append((f.name, hints[f.name], field(default_factory=f.default_factory)))
        else:
            own.append((f.name, hints[f.name]))
    config = make_dataclass(
        f"SAELens_{architecture}_Config",
        own,
        frozen=True,
        namespace={"__post_init__": _check_knob},
    )
    knob = next((KNOBS[name] for name, *_ in own if name in KNOBS), None)
    axes = AXES.get(architecture, base.latent_axis)
    members = {
        "__doc__": f"SAELens's {architecture}.",
        "Config": config,
        "knob": knob,
        "architecture": architecture,
        "latent_axis": axes,
    }
    return type(f"SAELens_{architecture}", (base,), {"__module__": base.__module__, **members})


def _check_knob(config: Any) -> None:
    for name in KNOBS:
        if getattr(config, name, 0) < 0:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 0")


def _registered() -> dict[str, Any]:
    import sae_lens  # noqa: F401  # registers its architectures
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    return SAE_TRAINING_CLASS_REGISTRY

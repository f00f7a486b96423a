"""Points about how a variant is made and about its losses on one batch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench import source
from bench.check import data, names
from bench.check.data import BATCH, D_IN, D_SAE
from bench.check.largest import Largest, largest_temporary
from bench.check.rehearsal import Rehearsal, same, step
from bench.check.report import Point, Problem
from bench.check.source_points import field_names
from bench.variant import Batch, Knob, Step, Variant

N_SHUFFLES = 6
SYSTEMATIC = 6.0
"""A loss that is this many standard deviations off in reading order does depend on the order."""
REAL_BATCH, REAL_D_SAE, REAL_D_IN = 4096, 16384, 2304
MANY_GB = 1.0
D_SAE_LARGE = 4096


def interface(r: Rehearsal) -> Iterator[Problem]:
    """What the class declares fits together."""
    left = sorted(getattr(r.cls, "__abstractmethods__", ()))
    if left:
        yield Problem(f"does not define {', '.join(left)}", "define what bench/variant.py asks for")
        return
    if r.knob is None:
        yield Problem(
            "declares no sparsity knob, so no target L0 can be set",
            'declare `knob = Knob("k", raises_l0=True, native=True)` or the like',
            is_warning=True,
        )
    elif not isinstance(r.knob, Knob):
        yield Problem(f"knob={r.knob!r} is no Knob", 'write `knob = Knob("k", True, True)`')
    elif r.knob.name not in field_names(r.cls.Config):
        yield Problem(
            f"the knob {r.knob.name!r} is no field of its Config",
            "name a field of the Config as the knob",
        )


def knob_refuses(r: Rehearsal) -> Iterator[Problem]:
    """A value that means nothing is refused where the config is made, not hours later."""
    if r.knob is None:
        return
    value = getattr(r.cfg, r.knob.name)
    try:
        r.make(cfg=type(r.cfg)(**{r.knob.name: type(value)(-1)}))
    except ValueError:
        return
    yield Problem(
        f"accepts {r.knob.name}=-1",
        "raise ValueError for it in the Config's __post_init__",
        is_warning=True,
    )


def builds_from_its_seed(r: Rehearsal) -> Iterator[Problem]:
    """Equal seeds give equal weights, others others; nothing starts at zero or not finite."""
    torch.default_generator.manual_seed(1)
    variant = r.make()
    first = variant.state_dict()
    torch.default_generator.manual_seed(2)
    second, other = r.make().state_dict(), r.make(seed=1).state_dict()
    for name, value in first.items():
        if not same(value, second[name]):
            yield Problem(
                f"{name} differs between two builds from one seed",
                "draw every random number from the `generator` that __init__ gets",
            )
    for name, parameter in variant.named_parameters():
        if not parameter.isfinite().all():
            yield Problem(f"{name} is not finite before the first step")
    for name in ("W_enc", "W_dec"):
        if name in first and not first[name].any():
            yield Problem(f"{name} is zero, so no gradient ever reaches it")
    if all(same(value, other[name]) for name, value in first.items()):
        yield Problem(
            "the seed changes no weight, so all seeds train the same SAE",
            "draw the weights from the `generator` that __init__ gets",
        )
    for name, axis in r.cls.latent_axis.items():
        shape = variant.get_parameter(name).shape
        if axis >= len(shape) or shape[axis] != D_SAE:
            yield Problem(
                f"latent_axis[{name!r}]={axis}: {name} has shape {list(shape)}, d_sae is {D_SAE}",
                "give for each parameter the axis that counts latents",
            )


def attributes_exist(r: Rehearsal) -> Iterator[Problem]:
    """Every `self.name` and `self.cfg.name` of the class, on paths that nothing runs too."""
    variant = r.make()
    known = names.assigned_attributes(r.tree)
    fields = field_names(type(variant.cfg))
    (plugin,) = source.subclasses(r.tree, Variant.__name__)
    methods = names.methods(plugin)
    for found in names.used_attributes(methods, "self"):
        if not (found.text in known or hasattr(variant, found.text)):
            yield Problem(f"{r.plugin.path}:{found.line}: self.{found.text} does not exist")
    for found in names.used_attributes(methods, "self.cfg"):
        if found.text not in fields:
            yield Problem(f"{r.plugin.path}:{found.line}: self.cfg.{found.text} does not exist")


def losses_are_numbers(r: Rehearsal) -> Iterator[Problem]:
    """Finite named scalars: early, late, with dead latents, and on a token that is all zero."""
    for progress, n_dead, has_zero in (
        (0.0, 0, False),
        (0.5, D_SAE // 4, True),
        (0.99, D_SAE, False),
    ):
        variant, batch = r.started(), r.batch()
        if has_zero:
            batch = batch._replace(x=batch.x.index_fill(0, torch.tensor(3), 0.0))
        at = step(progress=progress, n_dead=n_dead, number=int(progress * 100))
        terms = r.terms(variant, batch, at)
        problem = _unlike_losses(terms)
        if problem:
            yield problem
            return
        for name, term in terms.items():
            if not term.isfinite():
                yield Problem(
                    f"term {name!r} is {term.item()} at progress {progress:g} with {n_dead} dead "
                    f"latents{' and a token that is zero' if has_zero else ''}"
                )
        total = torch.stack(list(terms.values())).sum()
        if not total.requires_grad or not total.isfinite():
            continue  # another point says so
        total.backward()
        variant.after_backward(at)
        for name, p in variant.named_parameters():
            if p.grad is not None and not p.grad.isfinite().all():
                yield Problem(f"the gradient of {name} is not finite at progress {progress:g}")
        variant.after_step(batch, at)


def losses_are_attached(r: Rehearsal) -> Iterator[Problem]:
    """Every term that is not zero reaches a weight."""
    terms = r.terms(r.started(), r.batch(), step(n_dead=D_SAE // 4))
    for name, term in terms.items():
        if not term.requires_grad and term != 0:
            yield Problem(f"term {name!r} is detached: it changes no weight")


def every_parameter_learns(r: Rehearsal) -> Iterator[Problem]:
    variant = r.started()
    seen = dict.fromkeys((n for n, p in variant.named_parameters() if p.requires_grad), None)
    for index in range(4):
        at = step(n_dead=D_SAE // 4, progress=index / 4, number=index * 25)
        variant.zero_grad(set_to_none=True)
        _total(r, variant, r.batch(), at).backward()
        for name, p in variant.named_parameters():
            if p.grad is not None:
                seen[name] = max(seen.get(name) or 0.0, p.grad.abs().max().item())
    without = [n for n, largest in seen.items() if largest is None]
    if without:
        yield Problem(f"no gradient reaches {', '.join(without)}")
    silent = [n for n, largest in seen.items() if largest == 0.0]
    if silent:
        yield Problem(
            f"the gradient of {', '.join(silent)} was zero in all batches", is_warning=True
        )


def memory_is_linear_in_tokens(r: Rehearsal) -> Iterator[Problem]:
    """The largest temporary at n and at 2n tokens."""
    variant = r.started()
    at = step(n_dead=D_SAE // 4)
    small, large = (_largest(r, variant, r.batch(n), at) for n in (BATCH, 2 * BATCH))
    if large.numel <= 3 * small.numel:
        return
    per_pair = large.numel / (2 * BATCH) ** 2
    for toy, real in ((D_SAE, REAL_D_SAE), (D_IN, REAL_D_IN)):
        if per_pair >= toy:
            per_pair *= real / toy
            break
    gb = per_pair * REAL_BATCH**2 * 4 / 1e9
    where = f"{r.plugin.path}:{large.line}: " if large.line else ""
    yield Problem(
        f"{where}a temporary of shape {list(large.shape)} at {2 * BATCH} tokens, "
        f"{list(small.shape)} at {BATCH}: it grows with the square of the batch, to {gb:,.1f} GB "
        f"for {REAL_BATCH} tokens and {REAL_D_SAE} latents",
        is_warning=gb < MANY_GB,
    )


def memory_is_linear_in_latents(r: Rehearsal) -> Iterator[Problem]:
    variant = r.started(d_sae=D_SAE_LARGE)
    batch, at = r.batch(32), step(D_SAE_LARGE, n_dead=D_SAE_LARGE // 4)
    found = _largest(r, variant, batch, at)
    if found.numel >= D_SAE_LARGE**2:
        where = f"{r.plugin.path}:{found.line}: " if found.line else ""
        gb = REAL_D_SAE**2 * 4 / 1e9
        yield Problem(
            f"{where}a temporary of shape {list(found.shape)} with {D_SAE_LARGE} latents: "
            f"{gb:,.1f} GB or more with {REAL_D_SAE}"
        )


def order_of_x_is_ignored(r: Rehearsal) -> Iterator[Problem]:
    """`Batch.x` is shuffled; rows that follow one another have nothing to do with one another."""
    variant, views = r.started(), data.views(BATCH)
    batch = data.batch_of(views, in_sequence=r.cls.needs_sequences)
    with torch.no_grad():
        in_order = r.terms(variant, batch._replace(x=views.in_order))
        shuffled = [
            r.terms(variant, batch._replace(x=data.batch_of(views, in_sequence=False, seed=i).x))
            for i in range(N_SHUFFLES)
        ]
    for name, value in in_order.items():
        others = torch.stack([terms[name] for terms in shuffled]).double()
        rounding = 1e-4 * others.abs().mean().item() + 1e-7
        off = abs(value.item() - others.mean().item())
        if off > max(SYSTEMATIC * others.std().item(), rounding):
            yield Problem(
                f"term {name!r} takes neighbouring rows of the shuffled x for neighbouring tokens: "
                f"{value.item():.4g} in reading order, {others.mean().item():.4g} in another"
            )
        elif (others.max() - others.min()).item() > rounding:
            yield Problem(
                f"term {name!r} changes when the rows of x change places",
                "if it draws rows at random this is as it should be",
                is_warning=True,
            )


def sequences_count(r: Rehearsal) -> Iterator[Problem]:
    """With needs_sequences, which tokens stand together matters; without, nothing is there."""
    if not r.cls.needs_sequences:
        return
    variant, views = r.started(), data.views(BATCH)
    batch = data.batch_of(views, in_sequence=True)
    with torch.no_grad():
        right = r.terms(variant, batch)
        wrong = [r.terms(variant, _scrambled(batch, within=w)) for w in (True, False)]
    if all(_equal(right[n], terms[n]) for terms in wrong for n in right):
        yield Problem(
            "declares needs_sequences, but its losses are the same when the tokens of the contexts "
            "change places: positions and context ids are ignored"
        )


def special_tokens_are_left_out(r: Rehearsal) -> Iterator[Problem]:
    if not r.cls.needs_sequences:
        return
    variant, batch = r.started(), r.batch()
    assert batch.contexts is not None and batch.mask is not None
    noise = torch.randn(batch.contexts.shape, generator=torch.Generator().manual_seed(0))
    other = torch.where(batch.mask[..., None], batch.contexts, 10 * noise)
    with torch.no_grad():
        right, wrong = r.terms(variant, batch), r.terms(variant, batch._replace(contexts=other))
    for name, value in right.items():
        if not _equal(value, wrong[name]):
            yield Problem(f"term {name!r} depends on tokens where `batch.mask` is False")


def _scrambled(batch: Batch, *, within: bool) -> Batch:
    """The tokens of the contexts dealt anew, within each of them or among all."""
    contexts, mask, ids = batch.contexts, batch.mask, batch.token_ids
    assert contexts is not None and mask is not None and ids is not None
    generator = torch.Generator().manual_seed(0)
    flat, flat_ids = contexts[mask], ids[mask]
    n_contexts = len(contexts)
    if within:
        size = len(flat) // n_contexts
        parts = [torch.randperm(size, generator=generator) + i * size for i in range(n_contexts)]
        order = torch.cat(parts)
    else:
        order = torch.randperm(len(flat), generator=generator)
    contexts, ids = contexts.clone(), ids.clone()
    contexts[mask], ids[mask] = flat[order], flat_ids[order]
    return batch._replace(contexts=contexts, token_ids=ids)


def _total(r: Rehearsal, variant: Variant, batch: Batch, at: Step) -> Tensor:
    return torch.stack(list(r.terms(variant, batch, at).values())).sum()


def _largest(r: Rehearsal, variant: Variant, batch: Batch, at: Step) -> Largest:
    return largest_temporary(lambda: _total(r, variant, batch, at).backward(), r.plugin.path)


def _unlike_losses(terms: object) -> Problem | None:
    fix = 'return {"reconstruction": loss, ...} with scalar tensors'
    if not isinstance(terms, dict) or not terms:
        return Problem(f"losses returned {type(terms).__name__}, not a dict with terms", fix)
    for name, term in terms.items():
        if not isinstance(term, Tensor):
            return Problem(f"term {name!r} is a {type(term).__name__}, not a tensor", fix)
        if term.dim():
            return Problem(f"term {name!r} has shape {list(term.shape)}, not []", fix)
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-7)


POINTS: tuple[Point[Rehearsal], ...] = (
    Point(
        "interface",
        "defines train / encode / decode as bench/variant.py asks for",
        interface,
        "see the interface in bench/variant.py",
        needs=("imports",),
    ),
    Point(
        "build",
        "equal seeds give equal first weights",
        builds_from_its_seed,
        "call super().__init__(d_in, d_sae, cfg, generator=generator) first",
        needs=("imports", "interface", "config"),
    ),
    Point(
        "refuses",
        "a knob of -1 is refused",
        knob_refuses,
        "raise ValueError in the Config's __post_init__",
        needs=("build",),
    ),
    Point(
        "attributes",
        "every attribute of self and self.cfg that the source reads exists",
        attributes_exist,
        "define the attribute, or correct its spelling",
        needs=("build",),
    ),
    Point(
        "losses",
        "losses are finite scalars by name, with finite gradients",
        losses_are_numbers,
        "guard divisions, logarithms and norms where something can be zero",
        needs=("build",),
    ),
    Point(
        "attached",
        "every term of the loss reaches a weight",
        losses_are_attached,
        "leave out .detach(), .item() and torch.no_grad() on the way to the loss",
        needs=("losses",),
    ),
    Point(
        "gradients",
        "every parameter gets a gradient",
        every_parameter_learns,
        "use the parameter in a loss, delete it, or make it a buffer",
        needs=("losses", "attached"),
    ),
    Point(
        "memory",
        "no temporary grows with the square of the batch",
        memory_is_linear_in_tokens,
        "use f.T @ f [d_sae, d_sae] or a sample instead of f.unsqueeze(1) * f.unsqueeze(0)",
        needs=("losses", "attached"),
    ),
    Point(
        "memory_latents",
        "no temporary is as large as [d_sae, d_sae]",
        memory_is_linear_in_latents,
        "work in blocks of latents, or sample latents and scale up",
        needs=("losses", "attached"),
        is_slow=True,
    ),
    Point(
        "order",
        "no loss depends on the order of the rows of Batch.x",
        order_of_x_is_ignored,
        "declare needs_sequences = True and use batch.contexts [b, T, d_in]",
        needs=("losses",),
    ),
    Point(
        "sequences",
        "a variant that asks for whole contexts uses them",
        sequences_count,
        "use batch.contexts, batch.positions and batch.context_id, or drop needs_sequences",
        needs=("losses",),
    ),
    Point(
        "mask",
        "special tokens and padding do not count",
        special_tokens_are_left_out,
        "leave out tokens where batch.mask is False",
        needs=("losses",),
    ),
)

"""The model card of the nano pair, written from measured facts."""

from typing import Any

from bench.nano import lexicon

TEMPLATE = """# Nano pair: a synthetic language model and its instruct sibling

**Synthetic.** Both models know only a made-up world: invented names, invented facts, about
{tokens} words. No number measured on them says anything about real language models. The "hazard"
is invented too: its words name nothing that exists.

| | |
|---|---|
| Architecture | Gemma-2 (Hugging Face `Gemma2Config`), {parameters:,} parameters |
| Base | `base/`: text, lists, quizzes and chats of the nano world |
| Instruct | `instruct/`: fine-tuned from `base/` on chats in Gemma's format |
| Made by | `python bench.py nano build` (seed {seed}; weights differ slightly between machines) |
| Build time | {build_s} s on {cores} cores |

## What they know

Chance is 1/16 for recall of the hazard and 1/8 of the rest, 1/26 for spelling, 1/4 for a choice.
Measured by the build.

| | base | instruct |
|---|---|---|
| loss on held-out text (nats per token) | {base[loss]:.3f} | {instruct[loss]:.3f} |
| first letter named rightly | {base[spelling]:.3f} | {instruct[spelling]:.3f} |
{recall}

Multiple-choice questions in sae_bench's chat prompt; a question counts if the model is right under
**all 24 orders** of its choices:

| subject | questions | base | instruct |
|---|---|---|---|
{quiz}

First-letter probes at layer {layer} whose F1 passes sae_bench's absorption threshold of 0.6:
{letters} of 26 (base; sae_bench needs 20).

License: MIT, as the rest of the project.
"""


def render(facts: dict[str, Any]) -> str:
    """The card in markdown. `facts` is what `bench.nano.build.build` returns."""
    base, instruct = facts["base"], facts["instruct"]
    recall = [
        f"| facts recalled, {domain} | {base['recall'][domain]:.3f}"
        f" | {instruct['recall'][domain]:.3f} |"
        for domain in lexicon.DOMAINS
    ]
    quiz = [
        f"| {domain} | {base['quiz'][domain]['asked']} | {base['quiz'][domain]['right_all']}"
        f" | {instruct['quiz'][domain]['right_all']} |"
        for domain in lexicon.DOMAINS
    ]
    return TEMPLATE.format(
        tokens=facts["words"],
        parameters=base["parameters"],
        seed=facts["seed"],
        build_s=facts["build_s"],
        cores=facts["cores"],
        base=base,
        instruct=instruct,
        recall="\n".join(recall),
        quiz="\n".join(quiz),
        layer=facts["hook_layer"],
        letters=facts["letters"],
    )

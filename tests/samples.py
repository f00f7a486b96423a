"""Source text of plugins that tests write to disk."""

VARIANT = '''
    """A module."""
    from dataclasses import dataclass
    from bench.variant import Knob, Variant

    class Mine(Variant):
        """Keeps half of the latents.

        More text that a list does not show.
        """

        @dataclass(frozen=True)
        class Config:
            k: int = 32
            """Latents kept
            per token."""
            scale: float | None = None
            kind: "tuple[int, ...]" = (1, 2)

        knob = Knob("k", raises_l0=True, native=True)

        def encode(self, x, positions=None): return x
        def losses(self, batch, step): return {}
        def export(self): raise ValueError
'''

"""Every test runs offline, on one thread, with the same library clashes settled as in the product."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub
os.environ.setdefault("OMP_NUM_THREADS", "1")

from bench.compat import prepare  # noqa: E402

prepare()

"""Whether the hub can be asked, and what it says of a model or data set, without a hang.

With HF_HUB_OFFLINE set nothing is asked. Otherwise one short question finds out whether there is a
network at all, and each answer has a time limit.
"""

import socket
from functools import cache
from typing import Literal
from urllib.parse import urlparse

from bench import model_files
from bench.doctor.report import Check

TIMEOUT_S = 3.0
Kind = Literal["model", "dataset"]


def remote(name: str, what: str, repo: str, kind: Kind, suites: tuple[str, ...]) -> Check:
    """The check of something that is not on this machine: can it be fetched when it is needed?

    `what` says what is missing, as the message begins.
    """
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
    mirror = (
        "on a machine with network run `bench.py data fetch CONFIG`, then here `run --mirror DIR`"
    )
    if model_files.is_offline():
        return Check(name, "fail", f"{what}, and HF_HUB_OFFLINE is set", mirror, suites)
    if not is_reachable():
        return Check(name, "fail", f"{what}, and the hub cannot be reached", mirror, suites)
    answer = asked(repo, kind)
    if answer == "there":
        return Check(name, "pass", f"{repo} on the hub, will be fetched")
    if answer == "gated":
        fix = f"accept the terms at {page}, then `huggingface-cli login`; or {mirror}"
        return Check(name, "fail", f"{what}: gated on the hub", fix, suites)
    if answer == "absent":
        return Check(name, "fail", f"{what}: the hub has no {kind} {repo!r}", f"see {page}", suites)
    return Check(name, "warn", f"{what}: the hub did not answer in {TIMEOUT_S:g} s ({answer})")


@cache
def is_reachable() -> bool:
    """Whether the hub's machine takes a connection."""
    import huggingface_hub.constants as hub

    address = urlparse(hub.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), TIMEOUT_S).close()
    except OSError:
        return False
    return True


@cache
def asked(repo: str, kind: Kind) -> str:
    """`there`, `gated`, `absent`, or why there is no answer."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    # every repository has this file, and of a gated one it is gated as well
    url = hf_hub_url(repo, ".gitattributes", repo_type=kind)
    try:
        get_hf_file_metadata(url, timeout=TIMEOUT_S)
    except GatedRepoError:
        return "gated"
    except RepositoryNotFoundError:
        return "absent"
    except RemoteEntryNotFoundError:
        return "there"
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        return type(error).__name__
    return "there"

"""What one API key keeps on this disk, for its limit: sources of jobs, uploads, and what begun uploads announced.

Asked by the gateway and by the courier alike.
"""

import json
from contextlib import suppress
from pathlib import Path

from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage

CONTENT_SUFFIX = ".tus"
DESCRIPTION_SUFFIX = ".tus.json"


def kept_bytes(registry: JobRegistry, storage: JobStorage, owner: str) -> int:
    uploaded_bytes = 0
    for path in storage.uploads.glob(f"{owner}-*"):
        if path.name.endswith(DESCRIPTION_SUFFIX):
            continue
        with suppress(FileNotFoundError):
            uploaded_bytes += _announced_bytes(path) if path.name.endswith(CONTENT_SUFFIX) else path.stat().st_size
    return registry.source_bytes(owner) + uploaded_bytes


def begun_uploads(storage: JobStorage, owner: str) -> int:
    """Resumable uploads of this key that are not whole yet."""
    return sum(1 for _ in storage.uploads.glob(f"{owner}-*{CONTENT_SUFFIX}"))


def _announced_bytes(content: Path) -> int:
    """What an upload will take when it is whole; its place is kept from the beginning."""
    description = json.loads(content.with_suffix(DESCRIPTION_SUFFIX).read_bytes())
    return int(description["length_bytes"])

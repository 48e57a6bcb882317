"""Who does the work, by name. A backend is one file here and one line below."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantize.backends.base import Backend

BACKENDS: dict[str, str] = {
    "llmcompressor": "quantize.backends.llmcompressor:LlmCompressor",
    # Each in an environment of its own, see `sqtool backend`.
    "autoawq": "quantize.backends.external:autoawq",
    "auto-gptq": "quantize.backends.external:auto_gptq",
    "gptqmodel": "quantize.backends.external:gptqmodel",
}


def load_backend(name: str) -> Backend:
    """The backend of that name. Raises KeyError for a name that is not in the table."""
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)()
    return backend

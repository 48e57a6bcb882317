"""The table of methods. A new one is a file here and a line below."""

from __future__ import annotations

from importlib import import_module

from quantize.methods.base import MethodSpec

METHODS: dict[str, str] = {
    "awq": "quantize.methods.awq:AwqSpec",
    "gptq": "quantize.methods.gptq:GptqSpec",
    "smoothquant": "quantize.methods.smoothquant:SmoothQuantSpec",
    "fp8": "quantize.methods.fp8:Fp8Spec",
    "fp4": "quantize.methods.fp4:Fp4Spec",
    "kv_cache": "quantize.methods.kv_cache:KvCacheSpec",
    "rtn": "quantize.methods.rtn:RtnSpec",
}


def load_method(name: str) -> type[MethodSpec]:
    """The spec class of a method in the table. Raises KeyError for a name that is not there."""
    module, _, attribute = METHODS[name].partition(":")
    found = getattr(import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, MethodSpec)):
        raise TypeError(f"{METHODS[name]} is not a MethodSpec")
    return found

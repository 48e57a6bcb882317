"""A harness that breaks real runs in every way that a machine can, and looks at what is left.

`project` makes a small project (a random model, a double of vLLM, a double of a quantizer); `process` starts the real
`sqtool` on it and can kill any part of it; `inject` is the process that fails at a chosen call; `checks` says what must
hold after a fault; `scenarios` is the table of faults. `benchmarks/reliability/faults.py` runs all of them.
"""

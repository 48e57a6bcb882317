"""What speculative decoding does with the quantized model: the same traffic through four real vLLM servers.

`spec` is what a recipe may say, `traffic` chooses and freezes the requests, `client` sends and times them, `counters`
reads vLLM's own figures, `run` ties it. `analyse` makes speculate.json from the files that are left: `reading` and
`frame` read them, `resample` has the intervals, and a module each has latency, acceptance, cost, steps, interaction,
agreement, the sampling test and the rules. docs/speculate-measures.md defines every measure.
"""

"""Tasks of lm-evaluation-harness, run by lm-eval itself on the engine at hand; their samples become our records.

`catalogue` knows what a name means, `loading` loads tasks with their data, `served` and `in_process` are the models
that lm-eval asks, `records` turns its samples into records, and `run` does a whole evaluation. lm-eval itself is
imported inside functions, or by modules that are.
"""

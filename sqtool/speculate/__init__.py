"""What speculative decoding does with the quantized model: the same traffic through real vLLM servers, arm by arm.

`spec` is what a recipe may say. `requestlog` reads traffic, `traffic` chooses and freezes the sample, `scoring` says
which answers are accepted, `loads` how requests arrive. `arms` are the servers' configurations, `fit` refuses those
that cannot be, `schedule` orders everything, `servers` starts and ends them. `session` is one arm while its server
runs, over `client` (sends and times), `counters` (vLLM's own figures), `memory`, `probe` and `quality`; `store` keeps
what was measured. `run` ties it.

`analyse` makes speculate.json of the files: `reading` and `frame` read them, `resample` has the intervals, and a module
each has latency, acceptance, cost, steps, interaction, agreement and the sampling test. `rules` judges the recipe's
limits on it, in the stage behind. docs/speculate-measures.md defines every measure.
"""

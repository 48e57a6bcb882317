"""What speculative decoding does with the quantized model: the same traffic through four real vLLM servers.

`spec` is what a recipe may say, `traffic` chooses and freezes the requests, `client` sends and times them, `counters`
reads vLLM's own figures, `summary` turns one arm into numbers, `compare` sets arms against one another, `run` ties it.
"""

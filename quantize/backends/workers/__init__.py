"""What runs in environments of other quantizers; sqtool imports nothing of it (see `quantize.backends.external`)."""

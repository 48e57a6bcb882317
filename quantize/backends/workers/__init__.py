"""What runs in the environments of other quantizers. Nothing here is imported by sqtool: see `quantize.backends.external`."""

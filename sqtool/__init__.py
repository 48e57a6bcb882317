"""sqtool: quantize a language model, measure it, refuse what regressed, verify speculation on what passed."""

__version__ = "0.1.0"

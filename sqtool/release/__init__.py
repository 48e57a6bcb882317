"""Publishing what passed: a folder that vLLM serves, with its verdict, recipe, report and a hash of every file.

`spec` is the recipe's section, `publish` makes a release, `manifest.verify_manifest` checks one, `verdict` decides
whether a verdict allows it, `staging` lets it appear in one step, `card` writes its README.md, `provenance` tells
with what it was made.
"""

"""Publishing what passed: a folder that vLLM serves, with its verdict, recipe, report and a hash of every file.

`spec` is the recipe's section, `publish` makes a release, `verdict` decides whether a verdict allows it, `staging` lets
it appear in one step, `provenance` tells with what it was made. In it: `manifest` (hashes), `evidence` (the records),
`card` and `card_parts` (README.md), `bom` (ML-BOM), `attestation` and `signing`. Afterwards: `check` finds out whether
one is what it says, `history` orders and rolls back, `describe` shows, `upload` and `upload_hub` send elsewhere.
"""

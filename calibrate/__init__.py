"""Calibration: choose conversations, render them as the model sees them, prove that they cover what matters.

spec.py           the recipe section `calibrate:`
conversation.py   one conversation, whatever shape it was kept in
sources.py        reading JSONL, Parquet, text and `datasets`, a record at a time
pool.py           one pass over all sources that keeps a bounded, even draw
duplicates.py     near-duplicates
contamination.py  overlap with the test items
render.py         chat template, tokens, which of them the assistant wrote
candidates.py     the pool in tokens
reference.py      the sample of the traffic and the test items
choose.py         the weighted, seeded choice without replacement
greedy.py         the choice by coverage
selecting.py      which of the two, for so many conversations or tokens
features.py       what a conversation has, by dimension
text_coverage.py  how much of the traffic's features the set has
coverage.py       the verdict
fix.py            adding what is missing
packing.py        rows of equal length
artifact.py       the files of the set
build.py          the stage's function
"""

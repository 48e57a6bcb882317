"""Calibration: choose conversations, render them as the model sees them, prove that they cover what matters.

spec.py      the recipe section `calibrate:`
pool.py      reading and checking the pool's records
choose.py    the weighted, seeded choice without replacement
render.py    chat template, tokens, equal-length rows
coverage.py  what the set covers, by kind and by tool
build.py     the stage's function
"""

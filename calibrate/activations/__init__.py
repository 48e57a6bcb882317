"""What the model itself sees of calibration and of traffic: ranges at its layers, KV ranges, experts that are used.

spec.py        the recipe section `calibrate.activations:`
traffic.py     the traffic as a sample of token ids, in batches
load.py        the unmodified model, ready to run
watch.py       hooks that keep running maxima and counts while it runs
measure.py     both passes: calibration for the maxima, traffic for what lies beyond them
judge.py       a score, a threshold and a verdict for each dimension, and what is missing in words
histograms.py  lengths, kinds and channel maxima as shares, for the report's plots
stage.py       what the calibrate stage calls
"""

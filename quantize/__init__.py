"""Quantization: which methods, on which layers, by which backend, and the checkpoint files that come out.

spec.py          the recipe section `quantize:`
schemes.py       what each scheme name stores (bits, groups, symmetry), from compressed-tensors
methods/         one small spec a method, and the table that names them
layers.py        which layers a method matches, from the safetensors headers alone
plan.py          what would be done: layers, sizes, seconds; errors before anything expensive
backends/        who does the work (llm-compressor), behind one small interface
layer_report.py  layers.jsonl in short and as a picture
fake.py          simulated quantization: low-bit values in ordinary bf16 weights
checkpoint.py    the files around the weights, carried over byte for byte
run.py           the stage's function
"""

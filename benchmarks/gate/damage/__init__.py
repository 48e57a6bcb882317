"""Seeded regressions on the reference pair: does the gate see real damage, and leave sound checkpoints alone?"""

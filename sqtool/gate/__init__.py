"""The gate: paired, item by item, candidate against baseline; three outcomes; pure Python, NumPy and SciPy.

`spec` is what a recipe may say, `records` reads and pairs the items, `intervals` and `tests` hold the statistics,
`verdict` applies the rules, `explain` says it in words, `power` answers how many items a decision takes.
"""

"""After the rollout: what production says about each arm, and whether the candidate does harm.

`read_rollout` reads logs (`record`, `formats`, `reading`), sums up every arm (`table`) and judges the candidates by
tests that may be read at any time (`units`, `matching`, `compare`, `verdict`; `rules` say what is judged).
"""

from sqtool.rollout.record import Record, json_schema
from sqtool.rollout.rules import Rules, read_rules, with_options
from sqtool.rollout.run import Rollout, read_rollout

__all__ = ["Record", "Rollout", "Rules", "json_schema", "read_rollout", "read_rules", "with_options"]

"""Profile texts that the tests break in one place at a time."""

from __future__ import annotations

DISAGGREGATED = """\
apiVersion: baton/v1
kind: ServingProfile
metadata:
  name: example
  description: An example.
spec:
  mode: disaggregated
  model:
    source: demo
    max_model_len: 8192
  classify:
    threshold_tokens: 256
  pools:
    prefill:
      accelerator: nvidia-a100-80gb
      replicas: 2
    decode:
      accelerator: nvidia-l4
      max_num_seqs: 16
  transfer:
    block_size: 64
  deadlines:
    total_s: 120
  limits:
    in_flight: 64
"""

STANDARD = """\
apiVersion: baton/v1
kind: ServingProfile
metadata:
  name: plain
spec:
  mode: standard
  model:
    source: demo
  pools:
    standard:
      accelerator: cpu
"""


def changed(text: str, *changes: tuple[str, str]) -> str:
    """The text with each ``old`` replaced by ``new``, once; a missing one is the test's mistake."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text

"""How to break each rule between fields of a profile, as a table.

Each entry makes a sound profile of its mode break one rule, with numbers by lot, and says which
field a message has to name.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from profiles import Mode

Data = dict[Any, Any]
Path = tuple[str | int, ...]


class Gone:
    """Stands for a key to remove."""


GONE = Gone()

_D, _S = Mode.DISAGGREGATED, Mode.STANDARD
Changes = Callable[[random.Random], dict[str, object]]


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """One rule.

    Attributes:
        name: of the rule, for people.
        mode: of the profiles that it is broken in.
        path: the field that is named, under ``spec``.
        changes: values to put in, by dotted path under ``spec``.
    """

    name: str
    mode: Mode
    path: Path
    changes: Changes

    def apply(self, data: Data, rng: random.Random) -> Path:
        """Breaks the rule in ``data``; gives the whole path of the field to be named."""
        for dotted, value in self.changes(rng).items():
            *above, last = dotted.split(".")
            section = data["spec"]
            for part in above:
                section = section.setdefault(part, {})
            if value is GONE:
                section.pop(last, None)
            else:
                section[last] = value
        return ("spec", *self.path)


def _pool(rng: random.Random) -> Data:
    return {"accelerator": rng.choice(["nvidia-l4", "nvidia-a100-80gb"])}


RULES = (
    BrokenRule(
        "classify in mode standard",
        _S,
        ("classify",),
        lambda r: {"classify": {"threshold_tokens": r.randint(1, 9999)}},
    ),
    BrokenRule(
        "degrade in mode standard",
        _S,
        ("degrade",),
        lambda r: {"degrade": {"attempts": r.randint(1, 9)}},
    ),
    BrokenRule(
        "prefill pool in mode standard",
        _S,
        ("pools", "prefill"),
        lambda r: {"pools.prefill": _pool(r)},
    ),
    BrokenRule(
        "decode pool in mode standard",
        _S,
        ("pools", "decode"),
        lambda r: {"pools.decode": _pool(r)},
    ),
    BrokenRule(
        "standard pool in mode disaggregated",
        _D,
        ("pools", "standard"),
        lambda r: {"pools.standard": _pool(r)},
    ),
    BrokenRule("no classify", _D, ("classify",), lambda r: {"classify": GONE}),
    BrokenRule("no prefill pool", _D, ("pools", "prefill"), lambda r: {"pools.prefill": GONE}),
    BrokenRule("no decode pool", _D, ("pools", "decode"), lambda r: {"pools.decode": GONE}),
    BrokenRule("mode against pools", _D, ("pools", "standard"), lambda r: {"mode": "standard"}),
    BrokenRule("mode against classify", _S, ("classify",), lambda r: {"mode": "disaggregated"}),
    BrokenRule(
        "threshold beyond every prompt",
        _D,
        ("classify", "threshold_tokens"),
        lambda r: {
            "model.max_model_len": r.randint(2, 500),
            "classify.threshold_tokens": r.randint(500, 9999),
        },
    ),
    BrokenRule(
        "hysteresis without cost",
        _D,
        ("classify", "hysteresis"),
        lambda r: {"classify.decider": "threshold", "classify.hysteresis": r.randint(20, 90) / 100},
    ),
    BrokenRule(
        "no name in the source",
        _S,
        ("model", "source"),
        lambda r: {
            "model.source": "/models/" + "x" * r.randint(201, 300),
            "model.served_name": GONE,
        },
    ),
    BrokenRule(
        "step smaller than its sequences",
        _D,
        ("pools", "decode", "max_num_batched_tokens"),
        lambda r: {
            "pools.decode.max_num_batched_tokens": r.randint(1, 31),
            "pools.decode.max_num_seqs": r.randint(32, 99),
        },
    ),
    BrokenRule(
        "GPU memory of a CPU",
        _S,
        ("pools", "standard", "gpu_memory_utilization"),
        lambda r: {
            "pools.standard.accelerator": "cpu",
            "transfer.block_size": 32,
            "pools.standard.gpu_memory_utilization": r.randint(1, 9) / 10,
        },
    ),
    BrokenRule(
        "blocks too small for a CPU",
        _S,
        ("transfer", "block_size"),
        lambda r: {"pools.standard.accelerator": "cpu", "transfer.block_size": 16},
    ),
    BrokenRule(
        "KV of two meanings",
        _D,
        ("pools", "prefill", "engine_args", "kv-cache-dtype"),
        lambda r: {"pools.prefill.engine_args": {"kv-cache-dtype": r.choice(["fp8", "auto"])}},
    ),
    BrokenRule(
        "nodes that do not divide the devices",
        _S,
        ("pools", "standard", "nodes"),
        lambda r: {"pools.standard.tensor_parallel": 2, "pools.standard.nodes": r.randrange(3, 60)},
    ),
    BrokenRule(
        "stages under a handoff",
        _D,
        ("pools", "prefill", "pipeline_parallel"),
        lambda r: {"pools.prefill.pipeline_parallel": r.choice([2, 4])},
    ),
    BrokenRule(
        "takes its own",
        _D,
        ("pools", "decode", "takes", 0),
        lambda r: {"pools.decode.takes": ["decode"]},
    ),
    BrokenRule(
        "takes what is there",
        _D,
        ("pools", "decode", "takes", 0),
        lambda r: {"pools.decode.takes": ["prefill"]},
    ),
    BrokenRule(
        "takes twice",
        _D,
        ("pools", "decode", "takes", 0),
        lambda r: {"pools.prefill.takes": ["standard"], "pools.decode.takes": ["standard"]},
    ),
    BrokenRule(
        "a flag that Baton sets",
        _S,
        ("pools", "standard", "engine_args", "port"),
        lambda r: {"pools.standard.engine_args": {"port": r.randint(1, 65535)}},
    ),
    BrokenRule(
        "pause of the stock connector",
        _S,
        ("transfer", "progress_delay_us"),
        lambda r: {"transfer.connector": "stock", "transfer.progress_delay_us": r.randint(1, 999)},
    ),
    BrokenRule(
        "prefill beyond the whole",
        _D,
        ("deadlines", "prefill_s"),
        lambda r: {
            "deadlines.total_s": r.randint(400, 500),
            "deadlines.prefill_s": r.randint(501, 900),
        },
    ),
    BrokenRule(
        "silence beyond the whole",
        _S,
        ("deadlines", "idle_s"),
        lambda r: {
            "deadlines.total_s": r.randint(400, 500),
            "deadlines.idle_s": r.randint(501, 900),
        },
    ),
    BrokenRule(
        "connecting beyond the leg",
        _D,
        ("deadlines", "connect_s"),
        lambda r: {"deadlines.prefill_s": 2, "deadlines.connect_s": r.randint(3, 9)},
    ),
    BrokenRule(
        "a step twice",
        _D,
        ("degrade", "steps"),
        lambda r: {"degrade.steps": [r.choice(["local", "queue"])] * 2},
    ),
    BrokenRule(
        "canary shorter than its least",
        _D,
        ("switch", "canary_s"),
        lambda r: {"switch.canary_s": r.randint(1, 20), "switch.hold_s": r.randint(21, 99)},
    ),
)
"""One or more for each rule of ``profiles.rules``."""

"""What mining found, as text."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from zoo.negatives.table import NegativeTable

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def summary(table: NegativeTable, positive_scores: Float[np.ndarray, " N"] | None = None) -> str:
    """How many negatives are left, how they score beside the positives, and what each rule rejected.

    Args:
        table: a mined table.
        positive_scores: score of each row's positive under the same miner, if it has any.

    Returns:
        Lines of text. A rule's share is of the candidates that reached it.
    """
    present, counts = np.asarray(table.ids) >= 0, table.counts
    kept, n = int(counts.sum()), len(table)
    lines = [
        f"{kept} negatives of {n} pairs: {kept / max(n, 1):.1f} per pair, {int((counts == 0).sum())} pairs without"
    ]
    made = ", ".join(
        f"{key} {value}" for record in table.provenance if "rule" not in record for key, value in record.items()
    )
    if made:
        lines.append(made)
    lines += ["", f"{'scores':<12}" + "".join(f"{name:>10}" for name in ("mean", *(f"{q:.0%}" for q in _QUANTILES)))]
    for name, scores in (("positives", positive_scores), ("negatives", np.asarray(table.scores)[present])):
        if scores is not None and len(scores):
            values = (scores.mean(dtype=np.float64), *np.quantile(scores, _QUANTILES))
            lines.append(f"{name:<12}" + "".join(f"{value:>10.4f}" for value in values))
    rules = [record for record in table.provenance if "rule" in record]
    if rules:
        lines += ["", f"{'rejected':>10}{'share':>10}  rule"]
    reached = kept + sum(record["rejected"] for record in rules)
    for record in rules:
        details = ", ".join(
            f"{key} {value}" for key, value in record.items() if key not in ("rule", "rejected") and value is not None
        )
        name = f"{record['rule']} ({details})" if details else record["rule"]
        lines.append(f"{record['rejected']:>10}{record['rejected'] / max(reached, 1):>10.1%}  {name}")
        reached -= record["rejected"]
    return "\n".join(lines)

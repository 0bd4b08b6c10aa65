"""Wilson's score interval of a share: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

Source: Wilson 1927.
"""

from __future__ import annotations

import math

#: of 95 %
Z = 1.959963984540054


def wilson(count: int, n: int) -> tuple[float, float]:
    """(lower, upper) end of the 95 % interval of `count` in `n` > 0; 0 and 1 at the edges."""
    p, z2 = count / n, Z * Z / n
    middle = p + z2 / 2
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n))
    low, high = (middle - half) / (1 + z2), (middle + half) / (1 + z2)
    return 0.0 if count == 0 else max(0.0, low), 1.0 if count == n else min(1.0, high)

"""Programs that use the API wrongly, with what must be raised: reference table 1.3, row by row.

Each program is run after `import modal` and `app = modal.App("misuse")`. The same rows are tried on the vendor's own
package, so that they say what Modal does and not what we think it does.
"""

from __future__ import annotations

from tests.support import misuse_decorators, misuse_values
from tests.support.misuse_row import Misuse

__all__ = ["PRELUDE", "ROWS", "Misuse"]

PRELUDE = 'import modal\napp = modal.App("misuse")\n'

ROWS: tuple[Misuse, ...] = (*misuse_decorators.ROWS, *misuse_values.ROWS)

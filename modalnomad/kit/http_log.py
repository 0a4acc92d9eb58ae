"""What the small HTTP servers of `up` (admin listener, control socket) write about those who connect."""

from __future__ import annotations

import logging

from aiohttp.http import HttpProcessingError


class _OurFailures(logging.Filter):
    """A request that is no proper one is answered; it is no failure of ours, and no traceback is of use to anybody."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


http_logger = logging.getLogger("modalnomad.http")
"""For aiohttp's servers: failures of handlers, and nothing that a client's bytes alone can bring about."""
http_logger.addFilter(_OurFailures())

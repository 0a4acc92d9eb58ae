"""Asyncio and file tools that know no word of the domain."""

"""Commands: parse, call, show. The only package that prints or exits; no decision is made here."""

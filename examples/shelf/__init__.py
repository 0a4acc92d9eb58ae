"""A program that is a package: served as a module, so relative imports work.

cd examples && modalnomad serve -m shelf.app

curl "$SEARCH/?word=sea"    → the books with that word in their title
curl "$TITLES/titles"       → all titles, from a template file that lies in the package
"""

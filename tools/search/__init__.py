"""Hybrid search over a local corpus: BM25 and dense vectors, fused by reciprocal rank.

`tools.search.build` makes and changes an index folder, `tools.search.index` answers from one, and
`tools.search.tool` lets a policy call it. The folder's format is documented in `docs/search.md`.
"""

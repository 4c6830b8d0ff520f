"""Runs the cases of a folder of recorded behaviour against Pillarbox (`tests/corpus/README.md` describes the format).

`python -m tests.corpus.runner` prints a table; `tests/corpus/test_corpus.py` makes each case a test.
"""
